"""`node-agent sidecar-config`: what an Envoy sidecar starts with."""
