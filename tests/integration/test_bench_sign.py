"""The benchmark of signing runs, and its figures make sense."""

from __future__ import annotations

import json
import subprocess
import sys


def run(*arguments: str) -> str:
    command = [sys.executable, "-m", "bench.sign", "--rounds", "5", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=280).stdout


def test_the_benchmark_of_signing_prints_a_table_and_json() -> None:
    figures = json.loads(run("--json"))
    assert {(row["issuer"], row["leaf"]) for row in figures} >= {("P-256", "P-256"), ("RSA-2048", "RSA-2048")}
    for row in figures:
        # Wide bounds: the machine may be busy. Far more than the keys can do would be a mistake in measuring.
        assert 0.02 < row["made_share_of_bare"] < 3
        assert 0.02 < row["made_share"] < 3
        assert row["limit_per_second"] > 0
    assert "P-256" in run()
