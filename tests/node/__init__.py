"""Tests of the node agent under a real kubelet and containerd, with real pods."""
