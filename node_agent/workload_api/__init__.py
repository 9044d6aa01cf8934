"""The SPIFFE Workload API on the agent's sockets, with reflection and health beside it: SPIFFE clients are at home."""
