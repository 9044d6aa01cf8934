"""What differs from platform to platform: where the ports of the CA get their adapters."""
