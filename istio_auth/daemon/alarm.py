"""The alarm clock: rings at intervals, and does nothing else.

APScheduler 3.x keeps the time. Its jobs only set an event, because it logs what a job raises and forgets it; the work
is done by the supervised task that waits. A ring is never dropped for being late (its own default is to drop after a
second), and rings that were missed come as one. It counts by the machine's clock, so it rings after a suspended
machine wakes up; a clock that was set back would silence it for as long as it was set back, therefore a wait also
ends when the event loop's own, steady clock says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from datetime import UTC, timedelta
from types import TracebackType
from typing import Self

from apscheduler.jobstores.base import JobLookupError
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.interval import IntervalTrigger


class Alarm:
    """An alarm clock that runs from entering to leaving."""

    def __init__(self) -> None:
        self._scheduler = AsyncIOScheduler(timezone=UTC)

    async def __aenter__(self) -> Self:
        self._scheduler.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._scheduler.shutdown(wait=False)

    async def every(self, interval: timedelta, *, jitter: timedelta = timedelta()) -> AsyncGenerator[None]:
        """Ring after each interval, for ever; what rings while the work is still going on is one ring after it.

        Args:
            interval: between two rings.
            jitter: how much earlier or later each may come, so that many daemons do not ring together.
        """
        rung = asyncio.Event()

        async def ring() -> None:
            rung.set()

        job = self._scheduler.add_job(
            ring,
            IntervalTrigger(seconds=interval.total_seconds(), jitter=jitter.total_seconds() or None, timezone=UTC),
            misfire_grace_time=None,
            coalesce=True,
            max_instances=1,
        )
        try:
            while True:
                with suppress(TimeoutError):
                    await asyncio.wait_for(rung.wait(), (interval + jitter).total_seconds() + 1)
                rung.clear()
                yield
        finally:
            with suppress(JobLookupError):  # the alarm clock stopped before whoever listened to it
                job.remove()
