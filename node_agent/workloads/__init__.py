"""What the workloads of this node may hold, hold, and will hold after a restart."""
