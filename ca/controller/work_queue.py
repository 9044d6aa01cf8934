"""WorkQueue, Agenda and Attempts: which keys to look at now, which later, and how much later after a failure.

A key waits only once, however often it is added. Only one worker at a time works on a key: if it is added meanwhile, it
comes again afterwards. Urgent keys do not wait behind ten thousand others.
"""

from __future__ import annotations

import asyncio
import heapq
import random
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Hashable
from datetime import datetime, timedelta
from itertools import count
from typing import Generic, NoReturn, TypeVar

from istio_auth.rotation import retry_delay

_Key = TypeVar("_Key", bound=Hashable)


class WorkQueue(Generic[_Key]):
    """Keys to look at now. Lives on one event loop."""

    def __init__(self) -> None:
        self._urgent: deque[_Key] = deque()
        self._other: deque[_Key] = deque()
        self._waiting: dict[_Key, bool] = {}  # whether urgent; a key may stand in both queues, and counts once
        self._busy: set[_Key] = set()
        self._again: dict[_Key, bool] = {}
        self._free = asyncio.Semaphore(0)

    def __len__(self) -> int:
        return len(self._waiting) + len(self._again)

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nobody works."""
        return not self._waiting and not self._busy

    def add(self, key: _Key, *, urgent: bool = True) -> None:
        """Have somebody look at a key."""
        if key in self._busy:
            self._again[key] = urgent or self._again.get(key, False)
            return
        was = self._waiting.get(key)
        if was or was is urgent:
            return
        self._waiting[key] = urgent
        (self._urgent if urgent else self._other).append(key)
        if was is None:
            self._free.release()

    async def take(self) -> _Key:
        """The next key; it is the caller's until `done`."""
        await self._free.acquire()
        key = self._next()
        self._busy.add(key)
        return key

    def done(self, key: _Key) -> None:
        """Give back a key that `take` gave."""
        self._busy.discard(key)
        if (urgent := self._again.pop(key, None)) is not None:
            self.add(key, urgent=urgent)

    async def work_off(self, look_at: Callable[[_Key], Awaitable[None]]) -> NoReturn:
        """Look at one key after the other, for ever; several may do so at once."""
        while True:
            key = await self.take()
            try:
                await look_at(key)
            finally:
                self.done(key)
            await asyncio.sleep(0)  # most keys need no waiting, so other tasks must get their turn here

    def _next(self) -> _Key:
        for queue in (self._urgent, self._other):
            while queue:
                if self._waiting.pop(key := queue.popleft(), None) is not None:
                    return key
        raise AssertionError("there are as many keys as permits")


class Agenda(Generic[_Key]):
    """Keys to look at later, each at one instant."""

    def __init__(self) -> None:
        self._when: dict[_Key, datetime] = {}
        self._heap: list[tuple[datetime, int, _Key]] = []  # moved or dropped keys stay in it until it is their turn
        self._count = count()

    def __len__(self) -> int:
        return len(self._when)

    def put(self, key: _Key, when: datetime) -> None:
        """Have a key looked at then, and no longer when it was due before."""
        if self._when.get(key) == when:
            return
        self._when[key] = when
        heapq.heappush(self._heap, (when, next(self._count), key))
        if len(self._heap) > 2 * len(self._when) + 100:
            self._heap = [entry for entry in self._heap if self._when.get(entry[2]) == entry[0]]
            heapq.heapify(self._heap)

    def drop(self, key: _Key) -> None:
        """Have it looked at no more."""
        self._when.pop(key, None)

    def next(self) -> datetime | None:
        """When the next one is to be looked at; None if none is."""
        while self._heap and self._when.get(self._heap[0][2]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def take(self, now: datetime) -> list[_Key]:
        """Remove and return the keys that are to be looked at by now."""
        found: list[_Key] = []
        while (when := self.next()) is not None and when <= now:
            _, _, key = heapq.heappop(self._heap)
            del self._when[key]
            found.append(key)
        return found


class Attempts(Generic[_Key]):
    """How often in a row each key has failed, and how long it waits: twice as long each time, with jitter.

    Args:
        first: the bound of the first wait.
        longest: the bound of every wait.
    """

    def __init__(self, first: timedelta, longest: timedelta) -> None:
        self._first, self._longest = first, longest
        self._failed: Counter[_Key] = Counter()

    def failed(self, key: _Key, *, at_least: timedelta | None = None) -> timedelta:
        """Count a failure of a key, and tell how long it waits now.

        Args:
            key: the key.
            at_least: the wait that the other side has asked for.
        """
        self._failed[key] += 1
        draw = random.random()  # noqa: S311  # jitter
        delay = retry_delay(self._failed[key], draw=draw, first=self._first, longest=self._longest)
        return max(delay, at_least or timedelta())

    def count(self, key: _Key) -> int:
        """How often in a row it has failed."""
        return self._failed[key]

    def forget(self, key: _Key) -> None:
        """It has succeeded, or is gone."""
        self._failed.pop(key, None)
