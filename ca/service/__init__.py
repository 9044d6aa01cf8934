"""The gRPC services of the CA: thin layers over `ca.admission`, each with its own contract."""
