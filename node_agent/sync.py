"""The stream between agent and CA: bundles and registrations come down, what we hold and who has taken it goes up.

One stream at a time, for as long as it lasts; then again, with backoff. What the CA sends is judged entry by entry; a
set of bundles that is refused, or a delta that does not follow on what we hold, ends the stream, and the next one asks
for everything. A CA that does not have the stream is asked again now and then: it may get it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Self

import structlog

from istio_auth.errors import IstioAuthError, NotReady
from istio_auth.registration import Registration
from node_agent.backoff import Backoff, comes_within
from node_agent.ca_client.port import CertificateClient, News, NotOffered, Report
from node_agent.metrics import Metrics
from node_agent.trust import BundleRefused, Trust
from node_agent.workloads.registrations import Delta, Registrations

REPORT_EVERY = timedelta(seconds=30)
SETTLE = timedelta(milliseconds=200)  # what changes within this time is one report
ASK_AGAIN = timedelta(minutes=5)
MAX_LAGGARDS = 20  # by name, in a report
log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Consumers:
    """Who is served the bundle of our own trust domain.

    Args:
        total: how many.
        current: how many of them have taken what is held now.
        laggards: some of the others, by name.
    """

    total: int = 0
    current: int = 0
    laggards: tuple[str, ...] = ()

    @classmethod
    def of(cls, total: int, behind: Sequence[str]) -> Self:
        """So many, of whom these have not taken it."""
        return cls(total, total - len(behind), tuple(behind[:MAX_LAGGARDS]))

    def __add__(self, other: Consumers) -> Consumers:
        laggards = (*self.laggards, *other.laggards)[:MAX_LAGGARDS]
        return Consumers(self.total + other.total, self.current + other.current, laggards)


class Sync:
    """The loop. For one event loop.

    Args:
        client: the CA.
        trust: takes the bundles.
        ready: whether we can prove ourselves to the CA now.
        consumers: tells who has taken the present bundle.
        registered: told all registrations after each change; None if a local file says them.
        metrics: counts.
        backoff: makes the waits; by default real ones.
    """

    def __init__(
        self,
        client: CertificateClient,
        *,
        trust: Trust,
        ready: Callable[[], bool],
        consumers: Callable[[], Consumers],
        registered: Callable[[tuple[Registration, ...]], None] | None,
        metrics: Metrics,
        backoff: Backoff | None = None,
    ) -> None:
        self._client, self._trust, self._ready = client, trust, ready
        self._consumers, self._registered, self._metrics = consumers, registered, metrics
        self._backoff = backoff or Backoff()
        self._changed = asyncio.Event()
        self._again = asyncio.Event()
        self._held = Registrations()
        self._expected_end = False
        self.connected = False
        self.not_offered = False
        self.trouble: str | None = None  # why there is no stream at present
        self.heard = False  # whether the CA ever told us anything

    @property
    def failing_for(self) -> timedelta | None:
        """How long there has been no stream; None if there is one, or none was tried."""
        return self._backoff.failing_for()

    def look_again(self) -> None:
        """What we prove ourselves by has changed: a stream that ends now ends for that, and the next comes at once."""
        self._expected_end = True
        self._again.set()

    def report(self) -> None:
        """Something that the CA is told has changed."""
        self._changed.set()

    async def run(self) -> None:
        """Stay in touch for as long as we run."""
        while True:
            self._again.clear()
            wait = await self.step() if self._ready() else REPORT_EVERY
            await comes_within(self._again, wait)

    async def step(self) -> timedelta:
        """One stream, until it ends.

        Returns:
            how long to wait before the next.
        """
        self._expected_end = False
        try:
            async for news in self._client.sync(self._reports()):
                if not self.connected:
                    self.connected, self.not_offered, self.trouble = True, False, None
                    log.info("in sync with the CA")
                await self._take(news)
                self._backoff.succeeded()
        except NotOffered:
            return self._note_not_offered()
        except IstioAuthError as error:
            return self._note_end(error)
        finally:
            self.connected = False
        return self._note_end(NotReady("the CA ended the stream"))

    async def _reports(self) -> AsyncIterator[Report]:
        while True:
            self._changed.clear()
            yield self._present()
            if await comes_within(self._changed, REPORT_EVERY):
                await asyncio.sleep(SETTLE.total_seconds())

    def _present(self) -> Report:
        consumers = self._consumers()
        return Report(
            self._held.epoch,
            self._held.revision,
            self._trust.own.sequence or 0,
            consumers.total,
            consumers.current,
            consumers.laggards,
        )

    async def _take(self, news: News) -> None:
        self.heard = True
        if news.bundles:
            try:
                if await self._trust.take(news.bundles):
                    log.info("the CA's bundles are trusted now", sequence=self._trust.own.sequence)
            except BundleRefused:
                self._metrics.bundle_refused.inc()
                raise
        if news.delta is not None:
            self._take_delta(news.delta)
        self.report()

    def _take_delta(self, delta: Delta) -> None:
        held, self._held = self._held, Registrations()  # if it does not follow, the next stream asks for everything
        self._held = held.after(delta)
        for key, entry in delta.put.items():
            if not isinstance(entry, Registration):
                self._metrics.bad_registrations.inc()
                log.error("a registration of the CA can not be used", key=key[:200], reason=str(entry))
        if self._registered is not None:
            self._registered(self._held.all())
        log.info(
            "registrations have changed",
            revision=self._held.revision,
            put=len(delta.put),
            removed=len(delta.removed),
            total=len(self._held.by_key),
        )

    def _note_not_offered(self) -> timedelta:
        self._metrics.syncs.labels("NOT_OFFERED").inc()
        if not self.not_offered:
            log.warning("the CA has Istio's contract only: it sends no registrations, and no bundles")
        self.not_offered, self.trouble = True, "the CA has Istio's contract only"
        return ASK_AGAIN

    def _note_end(self, error: IstioAuthError) -> timedelta:
        if self._expected_end:
            return timedelta()
        self.trouble = str(error)
        wait = self._backoff.failed(error.retry_after)
        self._metrics.syncs.labels(error.code.name).inc()
        log.warning("not in sync with the CA", reason=str(error), again_in_seconds=round(wait.total_seconds(), 1))
        return wait
