"""Signals of a daemon, handled by a thread of their own: neither a lock nor a hung event loop can prevent its end.

The interpreter writes each signal's number into a pipe (`signal.set_wakeup_fd`) and the thread reads them there, so no
Python code has to do anything inside a signal handler. The thread also keeps the time limit: a process that was told to
end is ended at once if it is still there after the limit, or if it is told a second time after a moment.

Two things are different for PID 1. The kernel drops every signal that has no handler; we have one for each signal that
we know, and `hold` keeps the signals that come before the handlers are there. And PID 1 becomes the parent of orphans,
which it must reap. Our daemons start no programs, so every child of PID 1 is such an orphan.
"""

from __future__ import annotations

import faulthandler
import os
import select
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import partial
from types import FrameType
from typing import NoReturn, Self

_ENDING = (signal.SIGTERM, signal.SIGINT)
_HELD = (*_ENDING, signal.SIGHUP)
_ECHO = 0.5  # seconds: timeout(1) and others send a signal twice, to the process and to its group
_LIMIT = 0  # in the pipe, where signals are numbers from 1


def hold() -> None:
    """Keep the signals that come from now on, until `Signals` handles them."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)


class Signals:
    """A context manager that handles the signals of this process; the main thread must enter it.

    Args:
        stop_within: how long an orderly end may take.
        failure: the exit code of an end that was not orderly.
    """

    def __init__(self, stop_within: timedelta, failure: int) -> None:
        self._stop_within = stop_within.total_seconds()
        self._failure = failure
        self._told_at: float | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> Self:
        self._out, self._in = os.pipe()
        os.set_blocking(self._in, False)
        self._fd_before = signal.set_wakeup_fd(self._in, warn_on_full_buffer=False)
        heard = (*_HELD, signal.SIGCHLD) if os.getpid() == 1 else _HELD
        self._before = {number: signal.signal(number, _noted) for number in heard}
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD)
        return self

    def __exit__(self, *_: object) -> None:
        if self._told_at is not None:
            return  # the limit and a second signal count until the interpreter itself has ended
        signal.set_wakeup_fd(self._fd_before)
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # it is what signal.signal gave
        os.close(self._in)

    def listen(self, *, end: Callable[[str], object], reload: Callable[[], object]) -> None:
        """Begin to call these functions; signals that came before are told now.

        Args:
            end: called with the name of the signal, at the first one that asks for the end.
            reload: called at each SIGHUP.
        """
        threading.Thread(target=self._hear, args=(end, reload), name="signals", daemon=True).start()

    def limit(self) -> None:
        """The end has begun for another reason than a signal: from now on the time for it is limited."""
        with suppress(BlockingIOError):
            os.write(self._in, bytes([_LIMIT]))

    def _hear(self, end: Callable[[str], object], reload: Callable[[], object]) -> None:
        deadline: float | None = None
        while True:
            timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not select.select([self._out], [], [], timeout)[0]:
                self._end_hard(f"not gone {self._stop_within:g} s after the end began", trace=True)
            if not (numbers := os.read(self._out, 64)):
                return os.close(self._out)
            for number in numbers:
                if number == signal.SIGHUP:
                    _tell(reload)
                elif number == signal.SIGCHLD:
                    _reap()
                elif number in _ENDING:
                    self._asked_to_end(partial(end, signal.Signals(number).name))
                if number in {_LIMIT, *_ENDING} and deadline is None:
                    deadline = time.monotonic() + self._stop_within

    def _asked_to_end(self, end: Callable[[], object]) -> None:
        if self._told_at is None:
            self._told_at = time.monotonic()
            _tell(end)
        elif time.monotonic() - self._told_at > _ECHO:
            self._end_hard("a second signal asked for the end")

    def _end_hard(self, reason: str, *, trace: bool = False) -> NoReturn:
        # Straight to the descriptor: whatever hangs may hold the locks of logging and of sys.stderr.
        with suppress(OSError):
            os.write(2, f"ended at once: {reason}\n".encode())
            if trace:
                faulthandler.dump_traceback(2)
        os._exit(self._failure)


def _noted(_number: int, _frame: FrameType | None) -> None:
    """A handler must exist for the interpreter to write to the pipe; it has nothing to do itself."""


def _tell(whom: Callable[[], object]) -> None:
    with suppress(RuntimeError):  # its event loop is closed: the end has come already
        whom()


def _reap() -> None:
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass
