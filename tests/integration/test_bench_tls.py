"""The benchmark of TLS runs, and its figures make sense."""

from __future__ import annotations

import json
import subprocess
import sys


def run(*arguments: str) -> str:
    command = [sys.executable, "-m", "bench.tls", "--rounds", "3", "--slice", "0.05", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=280).stdout


def test_the_benchmark_of_tls_prints_figures_that_make_sense() -> None:
    figures = json.loads(run("--json"))
    assert [row["way"] for row in figures["handshakes"]] == ["blocking", "asyncio"]
    for row in figures["handshakes"]:
        # Wide bounds: the machine may be busy. To be faster than plain by far would be a mistake in measuring.
        assert 0.05 < row["ours_share"] < 3
        assert 0.05 < row["rotating_share"] < 3
        assert row["plain_per_second"] > 0
        assert row["ours_p99_ms"] > 0
        assert 0.2 < row["ours_cpu_overhead"] < 10
    assert {(row["way"], row["unit"]) for row in figures["streams"]} == {
        (way, unit) for way in ("blocking", "asyncio") for unit in ("MB", "messages")
    }
    for row in figures["streams"]:
        assert 0.1 < row["share"] < 10
    assert 0 < figures["rotation"]["server_ms"] < 1000


def test_the_benchmark_of_tls_prints_a_table() -> None:
    table = run()
    for word in ("plain", "ours", "rotating", "p99", "MB/s", "messages/s", "One rotation costs"):
        assert word in table
