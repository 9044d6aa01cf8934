"""Gathering: does blocking work on a few threads, in as few trips to them as possible.

A trip to a thread costs more than a P-256 signature, and a wait for the disk far more. So items share trips: what one
caller submits at once travels together, and what several callers submit while all threads are busy waits for the next
trip. Nothing waits for more items while a thread is idle. A caller that is cancelled loses only its answer: a trip that
has begun is finished.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from queue import SimpleQueue
from typing import Generic, TypeAlias, TypeVar

from istio_auth.errors import Exhausted, NotReady

MAX_WAITING = 4096  # items; more would wait longer than their callers do
MAX_TOGETHER = 64  # items of different callers that share a trip
_RETRY_AFTER = timedelta(seconds=1)

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_Party: TypeAlias = "tuple[Sequence[_Item], asyncio.Future[Sequence[_Result]]]"  # what travels together, and its answer


class Gathering(Generic[_Item, _Result]):
    """Does work for many callers. Lives on one event loop.

    The threads are not those of an executor, whose futures cost as much for one trip as a signature.

    Args:
        work: blocks; takes items and gives as many results, in their order. Runs on several threads at once.
        threads: how many.
        name: what the threads are called.
    """

    def __init__(self, work: Callable[[Sequence[_Item]], Sequence[_Result]], *, threads: int, name: str) -> None:
        self._work = work
        self._most = threads
        self._name = name
        self._threads: list[threading.Thread] = []
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._waiting: deque[_Party[_Item, _Result]] = deque()
        self._count = 0
        self._trips = 0  # under way
        self._all_home = asyncio.Event()
        self._aside_runs = False
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
        answer: asyncio.Future[Sequence[_Result]] = loop.create_future()
        self._waiting.append((items, answer))
        self._count += len(items)
        loop.call_soon(self._send_off)  # not at once: others of this turn of the loop may share the trip
        return await answer

    def aside(self, work: Callable[[], None]) -> None:
        """Do some other work on one of the threads, unless other work is already under way."""

        def job() -> None:
            try:
                work()
            finally:
                self._aside_runs = False

        if not self._closed and not self._aside_runs:
            self._aside_runs = True
            self._give(job)

    async def close(self) -> None:
        """Finish what is waiting, and take no more."""
        self._closed = True
        self._send_off()
        while self._trips:
            self._all_home.clear()
            await self._all_home.wait()
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            await asyncio.to_thread(thread.join)

    def _send_off(self) -> None:
        while self._waiting and self._trips < self._most:
            if parties := self._next_parties():
                self._trips += 1
                self._give(self._trip(parties))

    def _next_parties(self) -> list[_Party[_Item, _Result]]:
        parties: list[_Party[_Item, _Result]] = []
        room = MAX_TOGETHER
        while self._waiting and (not parties or len(self._waiting[0][0]) <= room):
            items, answer = self._waiting.popleft()
            self._count -= len(items)
            if not answer.cancelled():  # else nobody wants it any more
                parties.append((items, answer))
                room -= len(items)
        return parties

    def _trip(self, parties: Sequence[_Party[_Item, _Result]]) -> Callable[[], None]:
        """What a thread does for these parties."""
        loop = asyncio.get_running_loop()
        items = [item for party, _ in parties for item in party]

        def job() -> None:
            outcome: Sequence[_Result] | BaseException
            try:
                outcome = self._work(items)
            except BaseException as error:  # noqa: BLE001  # whatever it is, the callers get it
                outcome = error
            with suppress(RuntimeError):  # the loop has ended, and nobody waits any more
                loop.call_soon_threadsafe(self._returned, parties, outcome)

        return job

    def _returned(self, parties: Sequence[_Party[_Item, _Result]], outcome: Sequence[_Result] | BaseException) -> None:
        first = 0
        for items, answer in parties:
            if answer.done():
                pass  # cancelled meanwhile
            elif isinstance(outcome, BaseException):
                answer.set_exception(outcome)
            else:
                answer.set_result(outcome[first : first + len(items)])
            first += len(items)
        self._trips -= 1
        self._send_off()
        if not self._trips:
            self._all_home.set()

    def _give(self, job: Callable[[], None]) -> None:
        """Have a job done by one of the threads; a further thread is started if there may be more."""
        if len(self._threads) < self._most:
            name = f"{self._name}-{len(self._threads)}"
            self._threads.append(threading.Thread(target=_work_off, args=(self._jobs,), name=name, daemon=True))
            self._threads[-1].start()
        self._jobs.put(job)


def _work_off(jobs: SimpleQueue[Callable[[], None] | None]) -> None:
    """On a thread: do jobs until there is none."""
    while (job := jobs.get()) is not None:
        job()
