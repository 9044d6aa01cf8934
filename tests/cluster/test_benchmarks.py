"""The benchmarks on Kubernetes run, their figures make sense, and their tables are shown."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from bench import cluster, csr, pod_certificates
from bench.csr_kubernetes import MODES
from tests.cluster.client import JSON

pytestmark = pytest.mark.usefixtures("control_plane")  # each has one of its own, once the servers are built


def run(script: str, *arguments: str) -> JSON:
    """What a benchmark tells."""
    command = [sys.executable, "-m", f"bench.{script}", "--json", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=580)
    assert done.returncode == 0, done.stderr
    found: JSON = json.loads(done.stdout)
    return found


def test_the_benchmark_of_a_cluster_measures_work_that_was_done_and_a_restart_that_writes_nothing() -> None:
    found = run("cluster", "--accounts", "20", "--changes", "3")
    phases = {phase["what"]: cluster.Phase(**phase) for phase in found["phases"]}
    print(cluster.table(cluster.Result(**found | {"phases": list(phases.values())})))
    assert phases["created"].secrets >= 20
    # By the API server's own count: one write for each secret, and none for what is there.
    assert phases["created"].writes == 1
    assert phases["one change"].writes == 2  # its deletion, and ours
    assert 1 <= phases["new root"].writes < 1.2  # and the new root itself
    assert found["writes_of_restart"] == 0
    # What either was kept waiting for on a busy machine says nothing, but what it computed does: much less than who
    # does nothing else would be a mistake in measuring.
    assert found["ratio"] > 0
    assert 0.02 < found["cpu_ratio"] < 3
    assert all(0 < phase.peak_megabytes < cluster.AIM_MEGABYTES for phase in phases.values())


def test_the_benchmark_of_pod_certificates_sees_each_request_answered() -> None:
    found = pod_certificates.Result(**run("pod_certificates", "--requests", "20"))
    print(pod_certificates.table(found))
    assert 0 < found.p50 <= found.p99 <= found.total
    assert found.ratio > 0
    assert found.cpu_ms > found.bare_cpu_ms > 0


def test_the_benchmark_of_calls_measures_each_way_to_verify_a_token_beside_mutual_tls() -> None:
    found = run("csr", "--seconds", "0.2", "--only", "tokens")
    runs = [csr.Figures(**each) for each in found["runs"]]
    print(csr.table(found["limit_per_second"], runs))
    assert [(each.kind, each.callers) for each in runs] == [(mode, n) for mode in MODES for n in csr.TOKEN_CALLERS]
    for each in runs:
        assert each.share_of_create is not None
        assert each.share_of_create > 0
        assert 0 < each.cpu_share_of_limit < 2
        assert 0 < each.p50_ms <= each.p99_ms
