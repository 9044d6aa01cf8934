"""One server as a child process that can be killed, paused and started again, and that never outlives us."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from tests.fakes.guard import Guard

_START = 240.0  # seconds that it has to become ready, on a machine that is busy
_END = 30.0  # seconds that it has to end by itself
_LOOK = 0.02
_LAST_LINES = 12


class ServerFailed(Exception):
    """A server ended that should have gone on, or did not become ready; the message holds its last words."""


class Server:
    """A server that keeps its command line, and so its ports and data, from one start to the next.

    Args:
        command: its program and arguments.
        log: the file for all that it prints.
        is_ready: whether it serves, asked again and again while it starts.
        guard: whose group it belongs to.
    """

    def __init__(self, command: Sequence[object], *, log: Path, is_ready: Callable[[], bool], guard: Guard) -> None:
        self._command, self._log, self._is_ready, self._guard = list(map(str, command)), log, is_ready, guard
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def name(self) -> str:
        """The name of its program."""
        return Path(self._command[0]).name

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._running().pid

    @property
    def runs(self) -> bool:
        """Whether it was started and not killed since."""
        return self._process is not None

    def start(self) -> None:
        """Start it and wait until it is ready.

        Raises:
            ServerFailed: it ended, or took too long.
        """
        assert self._process is None, f"{self.name} runs already"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._log.parent,
                process_group=self._guard.group,
            )
        self.wait_until_ready()

    def wait_until_ready(self) -> None:
        """Wait until it serves.

        Raises:
            ServerFailed: it ended, or took too long.
        """
        deadline = time.monotonic() + _START
        while not self._is_ready():
            self.require_alive()
            if time.monotonic() > deadline:
                raise ServerFailed(f"{self.name} was not ready within {_START:.0f} s:\n{self._last_lines()}")
            time.sleep(_LOOK)

    def require_alive(self) -> None:
        """Make sure that it still runs.

        Raises:
            ServerFailed: it ended by itself.
        """
        if (code := self._running().poll()) is not None:
            raise ServerFailed(f"{self.name} ended by itself with status {code}:\n{self._last_lines()}")

    def kill(self) -> None:
        """End it without a word; nothing if it does not run."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def end(self) -> None:
        """Ask it to end, and kill it if it does not."""
        if self._process is not None:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_END)
            self.kill()

    def pause(self) -> None:
        """Let it hang: connections are accepted by the kernel, and nobody answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        os.kill(self.pid, signal.SIGCONT)

    def _running(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, f"{self.name} does not run"
        return self._process

    def _last_lines(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-_LAST_LINES:])
