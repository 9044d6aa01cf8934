"""The agent's own SVID: kept on disk, renewed at half of its life, and obtained anew if it has lapsed.

A new SVID is checked before it takes the place of the old one, and put on disk before it is used, so that an agent that
restarts needs no token. One that is killed in between comes back by its node key; so does one whose disk is full, for
what can not be written is used all the same (see `state`).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Protocol

import structlog

from istio_auth.clock import Clock, in_words
from istio_auth.errors import IstioAuthError
from istio_auth.rotation import renewal_due
from istio_auth.sources.memory import MemorySource
from istio_auth.subscribers import Subscribers
from istio_auth.svid import X509SVID
from istio_auth.x509_source import X509Context
from node_agent.backoff import Backoff, comes_within
from node_agent.ca_client.answer import BadAnswer
from node_agent.identity.state import StateFolder
from node_agent.metrics import Metrics
from node_agent.trust import Trust

LONGEST_WAIT = timedelta(seconds=30)
log = structlog.get_logger()


class Enrolling(Protocol):
    """Obtains an SVID for the agent itself."""

    async def obtain(self, *, lives: bool) -> X509SVID:
        """A new one, checked; not kept yet.

        Args:
            lives: whether the one held has not ended.

        Raises:
            BadAnswer: the CA answered with something that is none.
            IstioAuthError: the CA refused, or is away.
        """
        ...

    async def has_news(self) -> bool:
        """Whether something has come since the latest attempt that makes another one worth while."""
        ...


class Identity:
    """Holds the SVID and keeps it fresh. For one event loop.

    Args:
        enrolment: how to come by a new one.
        state: what is kept on disk.
        source: what we present to the CA; kept up to date here, with every change of trust too.
        trust: whom we trust.
        svid: the SVID that was on disk, lapsed or not; None if there was none.
        clock: tells the time.
        metrics: counts.
        draw: gives a number in [0, 1).
        backoff: makes the waits; by default real ones.
    """

    def __init__(
        self,
        enrolment: Enrolling,
        *,
        state: StateFolder,
        source: MemorySource,
        trust: Trust,
        svid: X509SVID | None,
        clock: Clock,
        metrics: Metrics,
        draw: Callable[[], float] = random.random,
        backoff: Backoff | None = None,
    ) -> None:
        self._enrolment, self._state, self._source, self._trust = enrolment, state, source, trust
        self._clock, self._metrics, self._draw = clock, metrics, draw
        self._backoff = backoff or Backoff()
        self._look = asyncio.Event()
        self._subscribers = Subscribers()
        self._lapse_told = svid is None
        self._due: datetime | None = None
        self.svid = svid
        self.trouble: str | None = None  # why the latest attempt to renew it failed
        if svid is not None:
            self._due = renewal_due(svid.not_before, svid.not_after, draw=draw())
        trust.subscribe(self._publish)
        self._publish()

    def lives(self) -> bool:
        """Whether there is an SVID that has not ended."""
        return self.svid is not None and self._clock.now() < self.svid.not_after

    @property
    def problem(self) -> str | None:
        """What keeps the agent from its work."""
        if self.lives():
            return None
        missing = "no SVID of our own yet" if self.svid is None else "our own SVID has ended"
        return missing if self.trouble is None else f"{missing}: {self.trouble}"

    @property
    def due(self) -> datetime | None:
        """When it is to be renewed; None if there is none."""
        return self._due

    @property
    def failing_for(self) -> timedelta | None:
        """How long it could not be renewed; None if it could."""
        return self._backoff.failing_for()

    def subscribe(self, changed: Callable[[], None]) -> None:
        """Call `changed` after each new SVID, and when the one held has lapsed, for as long as we run."""
        self._subscribers.add(changed)

    def look_again(self) -> None:
        """Something may have changed, a new join token for instance: try at once."""
        self._backoff.hurry()
        self._look.set()

    async def look_for_token(self) -> None:
        """Try at once if a join token has come that was not there when we last tried."""
        if not self.lives() and await self._enrolment.has_news():
            self.look_again()

    async def run(self) -> None:
        """Keep the SVID fresh for as long as we run."""
        while True:
            self._look.clear()
            wait = await self.step()
            await comes_within(self._look, wait)

    async def step(self) -> timedelta:
        """Do what is due.

        Returns:
            how long to wait before the next step.
        """
        if self.svid is not None and not self.lives():
            self._tell_lapsed(self.svid)
        if left := self._until_due():
            self._note_well()
            return min(LONGEST_WAIT, left)
        if left := self._backoff.remaining():
            return min(LONGEST_WAIT, left)
        try:
            svid = await self._enrolment.obtain(lives=self.lives())
            await asyncio.to_thread(self._state.keep_svid, svid)
        except IstioAuthError as error:
            return self._note_failure(error)
        self._hold(svid)
        return timedelta()

    def _until_due(self) -> timedelta:
        now = self._clock.now()
        if self.svid is None or self._due is None or now < self.svid.not_before:
            return timedelta()  # before its validity: the clock was set back
        return max(timedelta(), self._due - now)

    def _hold(self, svid: X509SVID) -> None:
        self._backoff.succeeded()
        self.svid, self._lapse_told, self.trouble = svid, False, None
        self._due = renewal_due(self._clock.now(), svid.not_after, draw=self._draw())  # see `Order.judged`
        self._metrics.issued.labels("agent").inc()
        log.info(
            "the agent has a new SVID",
            spiffe_id=str(svid.id),
            serial=f"{svid.leaf.serial_number:x}",
            not_after=f"{svid.not_after:%FT%TZ}",
        )
        self._publish()
        self._subscribers.tell()

    def _note_well(self) -> None:
        """Nothing is due: what failed before was for a clock that has been set back since."""
        self._backoff.succeeded()
        self.trouble = None
        if self._lapse_told and self.lives():
            self._lapse_told = False
            log.info("the clock was set back: the agent's own SVID has not ended")
            self._subscribers.tell()

    def _publish(self) -> None:
        svids = () if self.svid is None else (self.svid,)
        self._source.replace(X509Context(svids, self._trust.bundles))

    def _note_failure(self, error: IstioAuthError) -> timedelta:
        self.trouble = str(error)
        wait = self._backoff.failed(error.retry_after)
        if isinstance(error, BadAnswer):
            self._metrics.bad_answers.labels(error.fault).inc()
        self._metrics.failed.labels("agent", error.code.name).inc()
        left = "there is none" if self.svid is None else in_words(self.svid.not_after - self._clock.now())
        log.warning(
            "the agent's own SVID was not renewed",
            reason=str(error),
            attempt=self._backoff.attempts,
            again_in_seconds=round(wait.total_seconds(), 1),
            left=left if self.lives() or self.svid is None else "it has lapsed",
        )
        return min(LONGEST_WAIT, wait)

    def _tell_lapsed(self, svid: X509SVID) -> None:
        if not self._lapse_told:
            self._lapse_told = True
            self._metrics.lapsed.labels("agent").inc()
            log.warning("the agent's own SVID has lapsed", not_after=f"{svid.not_after:%FT%TZ}")
            self._subscribers.tell()
