.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

help:  ## what can be made here
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(READY): pyproject.toml
	@echo "installing into $(VENV) ..."
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 ..."; exit 2; }
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

install: $(READY)  ## everything that is needed, into .venv

demo: $(READY)  ## the main job, proven line by line: CA, node agent and Envoy sidecars on this machine
	@$(BIN)/python -m deploy.demo

demo-serve: $(READY)  ## the same, left running, with instructions to play
	@$(BIN)/python -m deploy.demo --serve

test: $(READY)  ## every check, and every test that needs neither root nor a long build, or whose build is there
	@$(BIN)/python -m tests

test-root: $(READY)  ## the tests that need root
	@$(BIN)/python -m tests --group root

test-interop: $(READY)  ## the tests with foreign clients that are built first (Go)
	@$(BIN)/python -m tests --group interop

test-cluster: $(READY)  ## the tests with a real Kubernetes API server and istiod, which are built first, once (Go)
	@$(BIN)/python -m tests.cluster.build > /dev/null  # its progress is on stderr
	@$(BIN)/python -m tests.cluster.istio.build > /dev/null
	@$(BIN)/python -m tests --group cluster

test-node: $(READY)  ## the tests with a real kubelet and pods, which are built first, once (Go, root)
	@$(BIN)/python -m tests.node.build > /dev/null
	@$(BIN)/python -m tests --group node

cluster: $(READY)  ## a Kubernetes control plane with the CA on it, left running, with instructions to play
	@$(BIN)/python -m tests.cluster

protos: $(READY)  ## generate istio_auth/proto/*_pb2.py again
	@$(BIN)/python -m grpc_tools.protoc --proto_path=. --python_out=. --pyi_out=. istio_auth/proto/*.proto

.PHONY: help install demo demo-serve test test-root test-interop test-cluster test-node cluster protos
