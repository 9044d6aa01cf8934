"""Node agents that join by a join token: they enrol with a node key, recover by it, and can be evicted."""
