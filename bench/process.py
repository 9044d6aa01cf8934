"""The processes that take part in a benchmark: what they are told, what they answer, and what they cost."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

_TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """The processor time that a process has taken so far, in all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def peak_megabytes(pid: int) -> float:
    """The most memory that a process has held so far."""
    found = re.search(r"VmHWM:\s*(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found, "Linux tells it"
    return int(found[1]) * 1024 / 1e6


class Party:
    """A process of ours that reads and writes lines of JSON."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def cpu_seconds(self) -> float:
        """The processor time it has taken so far, in all its threads."""
        return cpu_seconds(self._process.pid)

    def tell(self, order: Mapping[str, object]) -> None:
        """Send a line."""
        print(json.dumps(order), file=cast("IO[str]", self._process.stdin), flush=True)

    def answer(self) -> dict[str, float]:
        """Wait for a line."""
        if not (line := cast("IO[str]", self._process.stdout).readline()):
            raise SystemExit(f"a process of the benchmark ended: {self._process.args!r}")
        answer: dict[str, float] = json.loads(line)
        return answer


@contextmanager
def party(module: str, *arguments: str, log: Path) -> Iterator[Party]:
    """Run a module of ours until the block ends."""
    command = [sys.executable, "-m", module, *arguments]
    with (
        log.open("w") as errors,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        try:
            yield Party(process)
        finally:
            cast("IO[str]", process.stdin).close()
            process.wait(30)
