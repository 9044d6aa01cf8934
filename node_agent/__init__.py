"""The node: gives each workload on this machine its own identity and keeps it fresh."""
