"""The benchmark of tokens runs, and its figures make sense."""

from __future__ import annotations

import json
import subprocess
import sys


def run(*arguments: str) -> str:
    command = [sys.executable, "-m", "bench.jwt", "--rounds", "2", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=280).stdout


def test_the_benchmark_of_tokens_prints_a_table_and_json() -> None:
    figures = json.loads(run("--json"))
    assert [row["algorithm"] for row in figures] == ["RS256", "ES256"]
    for row in figures:
        # Wide bounds: the machine may be busy. A check that is skipped, or made twice, would show.
        assert 0.02 < row["verified_share"] < 1.5
        assert 0.02 < row["cold_share"] < row["known_share"]
        assert row["bare_per_second"] > 0
    assert "ES256" in run()
