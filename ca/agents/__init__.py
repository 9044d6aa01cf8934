"""Node agents of the standalone platform: invited by a join token, known by a node key, brought back by it, evicted."""
