"""The benchmark of the node agent runs, and its figures make sense."""

from __future__ import annotations

import json
import subprocess
import sys

from bench.agent import Result, Streams, table


def test_the_benchmark_of_the_agent_prints_a_table_and_json() -> None:
    few = ["--streams", "1", "4", "--workloads", "2", "4", "--rest", "0.2", "--calls", "0.5"]
    command = [sys.executable, "-m", "bench.agent", "--json", *few]
    figures = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=280).stdout)
    assert [row["streams"] for row in figures["streams"]] == [1, 4]
    for row in figures["streams"]:
        assert 0 < row["p50_ms"] <= row["p99_ms"] < 20_000
        assert 0 < row["bare_p50_ms"] <= row["bare_p99_ms"] < 20_000
    assert 20 < figures["idle_megabytes"] < 500
    assert 50 < figures["start_ms"] < 60_000
    rows = [Streams(**row) for row in figures.pop("streams")]
    assert figures["calls"] > 0
    assert figures["bare_calls"] > 0
    assert list(figures["workload_kb"]) == ["2", "4"]
    assert "KB at 2, " in table(Result(streams=rows, **figures))
