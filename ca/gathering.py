"""Gathering: work that blocks, done on a few threads, with as few trips to them as there can be.

A trip to a thread costs more than a P-256 signature, and a wait for the disk far more. So items share trips: what one
caller submits together travels together, and what several submit while all threads are busy waits and goes with the
next. Nobody waits for company when a thread is idle. A caller that is cancelled loses its answer and nothing else:
what has set out is finished.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from typing import Generic, TypeAlias, TypeVar

from istio_auth.errors import Exhausted, NotReady

MAX_WAITING = 4096  # items; more would wait longer than their callers do
MAX_TOGETHER = 64  # items of different callers that share a trip
_RETRY_AFTER = timedelta(seconds=1)

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_Answer: TypeAlias = "asyncio.Future[Sequence[_Result]]"


class Gathering(Generic[_Item, _Result]):
    """Does work for many callers. Lives on one event loop.

    Args:
        work: blocks; takes items and gives as many results, in their order. Runs on several threads at once.
        threads: how many.
        name: what the threads are called.
    """

    def __init__(self, work: Callable[[Sequence[_Item]], Sequence[_Result]], *, threads: int, name: str) -> None:
        self._work = work
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._waiting: deque[tuple[Sequence[_Item], _Answer[_Result]]] = deque()
        self._count = 0
        self._trips: set[_Answer[_Result]] = set()
        self._asides: set[asyncio.Future[None]] = set()
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether it takes no more."""
        return self._closed

    async def submit(self, items: Sequence[_Item]) -> Sequence[_Result]:
        """The results of these items, in their order; they travel together.

        Raises:
            Exhausted: too many are waiting.
            NotReady: it is closed.
        """
        if self._closed:
            raise NotReady("stopping")
        if self._count + len(items) > MAX_WAITING:
            raise Exhausted(f"{self._count} items are waiting", retry_after=_RETRY_AFTER)
        loop = asyncio.get_running_loop()
        answer: _Answer[_Result] = loop.create_future()
        self._waiting.append((items, answer))
        self._count += len(items)
        loop.call_soon(self._send_off)  # not at once: others of this turn of the loop may share the trip
        return await answer

    def aside(self, work: Callable[[], None]) -> None:
        """Do something else on one of the threads, unless such a thing is under way already."""
        if not self._closed and not self._asides:
            aside = asyncio.get_running_loop().run_in_executor(self._pool, work)
            self._asides.add(aside)
            aside.add_done_callback(self._asides.discard)

    async def close(self) -> None:
        """Finish what is waiting, and take no more."""
        self._closed = True
        self._send_off()
        while self._trips:
            await asyncio.wait(self._trips)
        self._pool.shutdown(wait=True)

    def _send_off(self) -> None:
        while self._waiting and len(self._trips) < self._threads:
            parties = self._next_parties()
            if parties:
                items = [item for party, _ in parties for item in party]
                trip = asyncio.get_running_loop().run_in_executor(self._pool, self._work, items)
                self._trips.add(trip)
                trip.add_done_callback(partial(self._returned, parties))

    def _next_parties(self) -> list[tuple[Sequence[_Item], _Answer[_Result]]]:
        parties: list[tuple[Sequence[_Item], _Answer[_Result]]] = []
        room = MAX_TOGETHER
        while self._waiting and (not parties or len(self._waiting[0][0]) <= room):
            items, answer = self._waiting.popleft()
            self._count -= len(items)
            if not answer.cancelled():  # nobody wants it any more, and nothing was done for it
                parties.append((items, answer))
                room -= len(items)
        return parties

    def _returned(self, parties: Sequence[tuple[Sequence[_Item], _Answer[_Result]]], trip: _Answer[_Result]) -> None:
        self._trips.discard(trip)
        error = trip.exception()
        first = 0
        for items, answer in parties:
            if answer.done():
                pass  # cancelled meanwhile
            elif error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(trip.result()[first : first + len(items)])
            first += len(items)
        self._send_off()
