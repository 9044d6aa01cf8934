"""A run of `make demo`'s program, with all its files in one folder, and what is left of it afterwards."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import istio_auth
from tests.fakes import guard
from tests.fakes.waiting import until

ROOT = Path(istio_auth.__file__).parent.parent
_LONGEST = 100.0


@dataclass
class Demo:
    """One run.

    Args:
        process: the program.
        folder: where it makes its own folder.
        lines: what it printed so far.
    """

    process: Process
    folder: Path
    lines: list[str] = field(default_factory=list)

    async def prints(self, start: str) -> str:
        """Read on to a line that starts so; "" if there is none."""
        async with asyncio.timeout(_LONGEST):
            while line := await self._line():
                if line.startswith(start):
                    return line
        return ""

    async def end(self, number: signal.Signals | None = None) -> int:
        """Read on to its end, which a signal may bring about; its exit code."""
        if number is not None:
            self.process.send_signal(number)
        async with asyncio.timeout(_LONGEST):
            while await self._line():
                pass
            return await self.process.wait()

    def processes(self) -> set[int]:
        """The processes that were told of the folder and still run."""
        return {int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and self._knows(entry)}

    async def has_started(self, *programs: str) -> None:
        """Wait until these run."""
        await until(lambda: {_comm(pid) for pid in self.processes()} >= {*programs}, within=_LONGEST)

    def _knows(self, entry: Path) -> bool:
        try:
            return os.fsencode(self.folder) in (entry / "cmdline").read_bytes()
        except OSError:
            return False  # it has just ended

    async def _line(self) -> str:
        assert self.process.stdout is not None
        line = (await self.process.stdout.readline()).decode()
        self.lines += [line.rstrip()] if line else []
        return line


def _comm(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""  # it has just ended


@asynccontextmanager
async def running_demo(*arguments: str, python: str | Path = sys.executable) -> AsyncIterator[Demo]:
    """Start it; it is ended when the context is left, if a test has failed before."""
    # Not below pytest's folder, whose path is too long for Unix sockets and closed to the users of the workloads.
    with TemporaryDirectory(prefix="demo-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o711)  # noqa: ASYNC240  # of no length
        process = await asyncio.create_subprocess_exec(
            python,
            "-m",
            "deploy.demo",
            *arguments,
            cwd=ROOT,
            env=os.environ | {"TMPDIR": name, "PYTHONDONTWRITEBYTECODE": "1"},
            stdout=PIPE,
            stderr=STDOUT,
            process_group=guard.group("TERM"),
        )
        demo = Demo(process, folder)
        try:
            yield demo
        finally:
            if process.returncode is None:
                await demo.end(signal.SIGTERM)
