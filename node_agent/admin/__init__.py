"""What an operator asks a running agent, over a socket that only its user and root can reach: status, explain."""
