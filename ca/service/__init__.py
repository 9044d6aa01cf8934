"""The gRPC services of the CA: thin, each with its own contract, all over `ca.admission`."""
