"""Keeps a key and a certificate in the secret `istio.<account>` for each service account of a managed namespace."""
