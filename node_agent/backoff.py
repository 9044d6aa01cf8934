"""When to try again: waits that double, with jitter, that honour the other side's hint, and that an event can end.

Waits are measured on a monotonic clock: a wall clock that is set back must not turn a wait of seconds into a day.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from datetime import timedelta

from istio_auth.rotation import retry_delay

FIRST = timedelta(milliseconds=500)
LONGEST = timedelta(seconds=60)
_LONGEST_HINT = timedelta(minutes=10)  # a mistaken hint must not silence us for good


class Backoff:
    """The waits between attempts at one thing.

    Args:
        first: the bound of the first wait.
        longest: the bound of every wait that nobody asked for.
        monotonic: seconds on a clock that only goes forward.
        draw: gives a number in [0, 1).
    """

    def __init__(
        self,
        *,
        first: timedelta = FIRST,
        longest: timedelta = LONGEST,
        monotonic: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._first, self._longest = first, longest
        self._monotonic, self._draw = monotonic, draw
        self._until = 0.0
        self._since: float | None = None
        self.attempts = 0

    def failed(self, retry_after: timedelta | None = None) -> timedelta:
        """Count a failure.

        Args:
            retry_after: how long the other side asked us to wait; we add a little, or a crowd would come at once.

        Returns:
            how long to wait.
        """
        self.attempts += 1
        if self._since is None:
            self._since = self._monotonic()
        wait = retry_delay(self.attempts, draw=self._draw(), first=self._first, longest=self._longest)
        if retry_after is not None:
            wait = max(wait, min(retry_after, _LONGEST_HINT) * (1 + self._draw() / 4))
        self._until = self._monotonic() + wait.total_seconds()
        return wait

    def succeeded(self) -> None:
        """Forget the failures."""
        self.attempts, self._until, self._since = 0, 0.0, None

    def hurry(self) -> None:
        """Do not wait: something may have changed. It is failing all the same until it has succeeded."""
        self.attempts, self._until = 0, 0.0

    def failing_for(self) -> timedelta | None:
        """How long it has been failing; None if it is not."""
        return None if self._since is None else timedelta(seconds=self._monotonic() - self._since)

    def remaining(self) -> timedelta:
        """How long to wait still; never negative."""
        if not self.attempts:
            return timedelta()
        return timedelta(seconds=max(0.0, self._until - self._monotonic()))


async def comes_within(event: asyncio.Event, wait: timedelta | None) -> bool:
    """Wait for an event, and no longer than this unless it is None; says whether it came."""
    try:
        async with asyncio.timeout(None if wait is None else wait.total_seconds()):
            return await event.wait()
    except TimeoutError:
        return False
