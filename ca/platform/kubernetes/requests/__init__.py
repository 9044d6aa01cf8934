"""Certificate requests of Kubernetes: decided, and answered."""
