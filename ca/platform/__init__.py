"""The platforms that the CA runs on: each brings its own adapters for the CA's ports."""
