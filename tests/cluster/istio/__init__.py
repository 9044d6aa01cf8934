"""Istio's own programs on a real control plane: its CA before our agent, and its agent before our CA."""
