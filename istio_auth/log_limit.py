"""Limits the log lines that strangers can cause: one a minute for each cause, and a bounded number of causes."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta


class LogLimit:
    """Says whether a line may be written. It remembers a bounded number of causes.

    Args:
        every: the length of a period; in each period a cause has one line.
        causes: how many causes have a line in one period.
        now: a clock that never goes back, in seconds.
    """

    def __init__(
        self,
        *,
        every: timedelta = timedelta(minutes=1),
        causes: int = 100,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._every, self._most, self._now = every.total_seconds(), causes, now
        self._told: set[str] = set()
        self._over = float("-inf")

    def allows(self, cause: str) -> bool:
        """Whether this cause may have a line now. A True counts as its line of this period."""
        if (now := self._now()) >= self._over:
            self._told.clear()
            self._over = now + self._every
        if cause in self._told or len(self._told) >= self._most:
            return False
        self._told.add(cause)
        return True


def without_port(caller: str) -> str:
    """The caller's name without the port of its address, which is another one for each of its connections."""
    name, _, port = caller.rpartition(":")
    return name if name and port.isdecimal() else caller
