"""The alarm clock: rings at intervals.

APScheduler 3.x keeps the time. Its jobs only set an event, because it logs what a job raises and forgets it; the work
is done by the supervised task that waits for it. A ring is never dropped for being late (APScheduler by default drops
one that is a second late), and several rings that were missed come as one.

Neither of a machine's clocks is enough alone. The monotonic clock stands still while a machine sleeps, so the wall
clock is looked at every minute. The wall clock can be set back, and no ring would come for that long, so a wait also
ends by the monotonic clock.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from datetime import UTC, timedelta
from types import TracebackType
from typing import NoReturn, Self

import structlog
from apscheduler.job import Job
from apscheduler.jobstores.base import JobLookupError
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.interval import IntervalTrigger

from istio_auth.errors import IstioAuthError

_log = structlog.get_logger()


class Alarm:
    """An alarm clock that runs inside its `async with` block.

    Args:
        look: how often to look at the wall clock.
    """

    def __init__(self, look: timedelta = timedelta(minutes=1)) -> None:
        self._scheduler = AsyncIOScheduler(timezone=UTC)
        self._look = look

    async def __aenter__(self) -> Self:
        self._scheduler.start()
        self._set(_look, self._look)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._scheduler.shutdown(wait=False)

    async def every(self, interval: timedelta, *, jitter: timedelta = timedelta()) -> AsyncGenerator[None]:
        """Ring after each interval, for ever. Rings that come while the caller still works are one ring after that.

        Args:
            interval: between two rings.
            jitter: how much earlier or later each ring may come, so that many daemons do not act at once.
        """
        rung = asyncio.Event()

        async def ring() -> None:
            rung.set()

        job = self._set(ring, interval, jitter)
        try:
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout((interval + jitter).total_seconds() + 1):
                        await rung.wait()
                rung.clear()
                yield
        finally:
            with suppress(JobLookupError):  # the alarm clock stopped before whoever listened to it
                job.remove()

    async def repeat(
        self,
        name: str,
        work: Callable[[], Awaitable[None]],
        interval: timedelta,
        *,
        jitter: timedelta = timedelta(),
    ) -> NoReturn:
        """Work now and at each ring, for ever. After a known error it tries again at the next; the log has it once.

        Args:
            name: what the work is called in the log.
            work: what to do.
            interval: see `every`.
            jitter: see `every`.
        """
        fault = await _attempted(name, work, "")
        async for _ in self.every(interval, jitter=jitter):
            fault = await _attempted(name, work, fault)
        raise AssertionError("an alarm clock rings for ever")

    def _set(self, ring: Callable[[], Awaitable[None]], interval: timedelta, jitter: timedelta = timedelta()) -> Job:
        trigger = IntervalTrigger(seconds=interval.total_seconds(), jitter=jitter.total_seconds() or None, timezone=UTC)
        return self._scheduler.add_job(ring, trigger, misfire_grace_time=None, coalesce=True, max_instances=1)


async def _look() -> None:
    """Does nothing itself: whenever the scheduler runs a job, it looks which others are due."""


async def _attempted(name: str, work: Callable[[], Awaitable[None]], before: str) -> str:
    """Work once, and return the fault or an empty text. A fault is logged if it is another than before."""
    try:
        await work()
    except (IstioAuthError, OSError) as error:
        fault = str(error)
        if fault != before:
            _log.error("it did not work, and will be tried again", work=name, reason=fault)
        return fault
    if before:
        _log.info("it works again", work=name)
    return ""
