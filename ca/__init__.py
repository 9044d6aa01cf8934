"""The control plane: holds the signing key and knows who may have which identity."""
