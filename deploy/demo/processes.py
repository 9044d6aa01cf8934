"""Child processes that never outlive us: each in a process group of its own, ended by that group's id.

What they print goes to files, so that a terminal shows what the demo says and nothing else.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

_GRACE = 10.0


class ProcessFailed(Exception):
    """A program ended that should have gone on, or did not do what it was started for."""


@dataclass
class Child:
    """One running program.

    Args:
        name: what it is called here.
        process: the program.
        output: the file that holds what it prints on stdout.
        errors: the file that holds what it prints on stderr.
        ends_by: the signal that asks it to end.
    """

    name: str
    process: asyncio.subprocess.Process
    output: Path
    errors: Path
    ends_by: signal.Signals = signal.SIGTERM

    def require_alive(self) -> None:
        """Make sure that it still runs.

        Raises:
            ProcessFailed: it has ended.
        """
        if self.process.returncode is not None:
            raise ProcessFailed(f"{self.name} ended by itself with status {self.process.returncode}")

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to its whole group; nothing if it has ended."""
        if self.process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)

    async def end(self, *, kill: bool = False) -> None:
        """Ask it to end, or kill it, and wait until it is gone."""
        self.signal(signal.SIGKILL if kill else self.ends_by)
        try:
            async with asyncio.timeout(_GRACE):
                await self.process.wait()
        except TimeoutError:
            self.signal(signal.SIGKILL)
            await self.process.wait()

    def tail(self, lines: int = 12) -> str:
        """The last lines it printed, errors if there are any."""
        text = self.errors.read_text(errors="replace") or self.output.read_text(errors="replace")
        return "\n".join(text.splitlines()[-lines:])


class Processes:
    """All children of one run; leaving ends them, the last one first.

    Args:
        logs: the folder for what they print.
    """

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self.children: list[Child] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for child in reversed(self.children):
            await child.end()

    async def start(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        uid: int | None = None,
        environment: Mapping[str, str] = {},
        ends_by: signal.Signals = signal.SIGTERM,
    ) -> Child:
        """Start a program in the background, as another user if `uid` says so.

        Args:
            name: what it is called, also its log files.
            command: the program and its arguments.
            uid: the user and group id it runs with; None keeps ours.
            environment: variables to set beside PATH and HOME.
            ends_by: the signal that asks it to end.
        """
        output, errors = self._logs / f"{name}.out", self._logs / f"{name}.err"
        # Opened here: the file of a user that may not read the program's own folder could not be.
        program = os.open(command[0], os.O_RDONLY | os.O_CLOEXEC)
        try:
            with output.open("ab") as out, errors.open("ab") as err:
                process = await asyncio.create_subprocess_exec(
                    *map(str, command),
                    executable=str(command[0]) if uid is None else f"/proc/self/fd/{program}",
                    pass_fds=() if uid is None else (program,),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                    env={key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ} | dict(environment),
                    start_new_session=True,
                    user=uid,
                    group=uid,
                    extra_groups=None if uid is None else (),
                )
        finally:
            os.close(program)
        child = Child(name, process, output, errors, ends_by)
        self.children.append(child)
        return child

    async def until_one_ends(self) -> None:
        """Wait for ever, if all of them go on.

        Raises:
            ProcessFailed: one has ended by itself.
        """
        endings = [asyncio.create_task(child.process.wait()) for child in self.children]
        try:
            await asyncio.wait(endings, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for ending in endings:
                ending.cancel()
        for child in self.children:
            child.require_alive()


def program(name: str) -> Path:
    """A program of this installation: what stands beside the Python that runs us."""
    return Path(sys.executable).parent / name


async def run(command: Sequence[str | Path], *, timeout: float = 60, text: str | None = None) -> str:  # noqa: ASYNC109  # of the program, which is killed then
    """Run a program to its end.

    Args:
        command: the program and its arguments.
        timeout: how many seconds it may take.
        text: what to give it on stdin.

    Returns:
        what it printed on stdout.

    Raises:
        ProcessFailed: it failed; the message holds what it printed on stderr.
    """
    process = await asyncio.create_subprocess_exec(
        *map(str, command),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(timeout):
            out, err = await process.communicate(None if text is None else text.encode())
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    if process.returncode:
        name = " ".join(map(str, [Path(command[0]).name, *command[1:2]]))
        raise ProcessFailed(f"{name} failed with status {process.returncode}: {err.decode(errors='replace').strip()}")
    return out.decode()
