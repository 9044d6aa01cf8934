"""Certificate requests of Kubernetes: what is decided about them, and who answers."""
