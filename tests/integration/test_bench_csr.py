"""The benchmark of certificates over the network runs, and its figures make sense."""

from __future__ import annotations

import json
import subprocess
import sys

from bench.csr import RUNS


def run(*arguments: str) -> str:
    command = [sys.executable, "-m", "bench.csr", "--seconds", "0.2", "--only", "certificates", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=280).stdout


def test_the_benchmark_of_calls_measures_each_of_them_and_against_the_limit() -> None:
    result = json.loads(run("--json"))
    assert [(row["kind"], row["callers"]) for row in result["runs"]] == list(RUNS)
    for row in result["runs"]:
        # Wide bounds: the machine may be busy. More than everything the keys can do would be a mistake in measuring.
        assert 0 < row["p50_ms"] <= row["p99_ms"]
        assert row["server_cpu_us"] > 0
        if row["kind"] != "empty":
            assert row["certificates_per_second"] > 0
            assert row["share_of_limit"] < 1
