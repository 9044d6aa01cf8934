"""The agent's own SVID: the ways to one, and what is kept of it."""
