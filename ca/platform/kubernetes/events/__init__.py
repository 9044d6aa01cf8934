"""Kubernetes Events: what happened to an object, shown on the object."""
