"""The main job on one machine: a CA, a node agent and three workloads with real Envoy sidecars (`make demo`)."""
