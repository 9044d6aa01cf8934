"""Keeps a live SVID for every registered workload: the one loop that asks the CA for what is due (`plan`).

* The CA is asked in batches. One that is away, or too slow for a batch, is asked again with backoff, one batch at a
  time and each half the size of the one before; when it answers they grow again, so that a CA that has just come back
  is not overwhelmed.
* An entry that was refused, or answered wrongly, has a backoff of its own and delays no other. Neither does one that
  makes the CA fail in whichever batch it is.
* An SVID that has ended is dropped. If a clock said so too early, and is set back, it is served again.
* Backoff is measured on a monotonic clock.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import NamedTuple

import structlog

from istio_auth.bundle import BundleSource
from istio_auth.clock import Clock, in_words
from istio_auth.errors import Exhausted, IstioAuthError, NotAuthenticated, NotAuthorized, NotReady
from istio_auth.keys import PrivateKey, new_private_key
from istio_auth.rotation import renewal_due
from istio_auth.spiffe_id import SpiffeID
from node_agent.backoff import Backoff, comes_within
from node_agent.ca_client.answer import BadAnswer, accepted
from node_agent.ca_client.csr import request_for
from node_agent.ca_client.port import Outcome, Signer, SigningRequest
from node_agent.metrics import Metrics
from node_agent.workloads.cache import Held, WorkloadCache
from node_agent.workloads.plan import LONGEST_WAIT, Plan, first_to_lapse, is_due, plan
from node_agent.workloads.registrations import Want

MAX_BATCH = 50  # entries in one call: some 20 kB, and a few milliseconds of the CA's time
LONGEST_AWAY = timedelta(minutes=1)  # between two questions to a CA that is away
LONGEST_REFUSAL = timedelta(minutes=5)  # between two questions for what it refused
log = structlog.get_logger()


def measure(metrics: Metrics, cache: WorkloadCache, clock: Clock) -> None:
    """Show what workloads hold, and for how long."""
    metrics.seconds_until(
        "seconds_until_first_lapse",
        "Until the first workload loses its certificate, if no more of them come",
        lambda: first_to_lapse(cache.snapshot),
        clock.now,
    )
    metrics.gauge("workloads", "Identities registered for this node", lambda: len(cache.snapshot.wanted))
    metrics.gauge("svids_held", "Of these, how many have a certificate", lambda: len(cache.snapshot.held))


class _Refusal(NamedTuple):
    """What the CA refused: when to ask again, and why it was refused the last time."""

    backoff: Backoff
    reason: str


class Renewals:
    """The loop.

    Args:
        cache: where SVIDs are put.
        client: the CA.
        ready: whether we can prove ourselves to the CA now.
        clock: tells the time.
        metrics: counts.
        draw: gives a number in [0, 1).
        backoff: makes the waits of one thing, with this bound; by default real ones.
    """

    def __init__(
        self,
        cache: WorkloadCache,
        client: Signer,
        *,
        ready: Callable[[], bool],
        clock: Clock,
        metrics: Metrics,
        draw: Callable[[], float] = random.random,
        backoff: Callable[[timedelta], Backoff] = lambda longest: Backoff(longest=longest),
    ) -> None:
        self._cache, self._client, self._ready = cache, client, ready
        self._clock, self._metrics, self._draw = clock, metrics, draw
        self._new_backoff = backoff
        self._ca = backoff(LONGEST_AWAY)
        self._refused: dict[Want, _Refusal] = {}
        self._ended: dict[SpiffeID, Held] = {}  # until others are held in their place
        self._suspects: set[Want] = set()  # with which the CA failed when it was asked for nothing else
        self._size = MAX_BATCH
        self.trouble: str | None = None  # why the CA gives nothing at present
        self._look = asyncio.Event()

    def look_again(self) -> None:
        """Something may have changed: plan anew."""
        self._look.set()

    async def run(self) -> None:
        """Renew for as long as we run."""
        end = self._cache.subscribe(self.look_again)
        try:
            while True:
                self._look.clear()
                wait = await self.step()
                await comes_within(self._look, wait)
        finally:
            end()

    async def step(self) -> timedelta:
        """Do what is due, one batch at the most.

        Returns:
            how long to wait before the next step.
        """
        self._take_back()
        self._forget_refusals()
        todo = plan(self._cache.snapshot, self._left_alone(), self._clock.now())
        if todo.lapsed:
            self._drop(todo.lapsed)
        if not todo.renew and not self._refused:
            self.trouble = None  # nobody needs the CA now
            self._ca.succeeded()
        if not todo.renew or not self._ready():
            return self._wait(todo)
        if left := self._ca.remaining():
            return min(self._wait(todo), left)
        batch = self._next_batch(todo.renew)
        try:
            await self._renew(batch)
        except IstioAuthError as error:
            wait = self._note_failure(error, batch, len(todo.renew))
            return min(self._wait(todo), wait)
        self._ca.succeeded()
        self._size = min(MAX_BATCH, self._size * 2)
        self.trouble = None
        return timedelta()

    @property
    def failing_for(self) -> timedelta | None:
        """How long the CA has been giving nothing; None if it gives."""
        return self._ca.failing_for()

    def refused_for(self, want: Want) -> timedelta | None:
        """How long it has been refused; None if it is not."""
        return self._refused[want].backoff.failing_for() if want in self._refused else None

    def refusal(self, want: Want) -> str | None:
        """Why the latest question for it was refused; None if it was not."""
        return self._refused[want].reason if want in self._refused else None

    def _forget_refusals(self) -> None:
        """Forget those of what is not due any more."""
        snapshot, now = self._cache.snapshot, self._clock.now()
        due = {want for spiffe_id, want in snapshot.wanted.items() if is_due(snapshot.held.get(spiffe_id), want, now)}
        self._refused = {want: refusal for want, refusal in self._refused.items() if want in due}

    def _left_alone(self) -> frozenset[SpiffeID]:
        return frozenset(want.spiffe_id for want, refusal in self._refused.items() if refusal.backoff.remaining())

    def _wait(self, todo: Plan) -> timedelta:
        refusals = (left for refusal in self._refused.values() if (left := refusal.backoff.remaining()))
        return min(LONGEST_WAIT, todo.wait, *refusals)

    async def _renew(self, batch: Sequence[Want]) -> None:
        orders = await asyncio.to_thread(lambda: [Order.of(want) for want in batch])
        outcomes = await self._client.sign([order.request for order in orders])
        bundles, now = self._cache.snapshot.bundles, self._clock.now()

        def judge() -> list[Held | IstioAuthError]:
            pairs = zip(orders, outcomes, strict=True)
            return [order.judged(outcome, bundles, now, self._draw()) for order, outcome in pairs]

        judged = await asyncio.to_thread(judge)
        for want, result in zip(batch, judged, strict=True):
            if isinstance(result, IstioAuthError):
                self._note_refusal(want, result)
            else:
                self._refused.pop(want, None)
        for held in self._cache.put(result for result in judged if isinstance(result, Held)):
            self._metrics.issued.labels("workload").inc()
            serial, end = f"{held.svid.leaf.serial_number:x}", f"{held.svid.not_after:%FT%TZ}"
            log.info("a workload has a new SVID", spiffe_id=str(held.svid.id), serial=serial, not_after=end)

    def _next_batch(self, due: Sequence[Want]) -> Sequence[Want]:
        """The most urgent; those that the CA may not bear are asked for last, and alone."""
        self._suspects &= self._refused.keys()
        return [want for want in due if want not in self._suspects][: self._size] or due[:1]

    def _take_back(self) -> None:
        """Serve again what ended by a clock that has been set back since."""
        now, snapshot = self._clock.now(), self._cache.snapshot
        self._ended = {
            spiffe_id: held
            for spiffe_id, held in self._ended.items()
            if spiffe_id in snapshot.wanted and spiffe_id not in snapshot.held
        }
        if live := [held for held in self._ended.values() if held.svid.not_before <= now < held.svid.not_after]:
            self._cache.put(live)
            log.warning("the clock was set back: SVIDs that seemed to have ended are served again", svids=len(live))

    def _drop(self, lapsed: AbstractSet[SpiffeID]) -> None:
        self._tell_lapsed(lapsed)
        self._ended |= {spiffe_id: self._cache.snapshot.held[spiffe_id] for spiffe_id in lapsed}
        self._cache.drop(lapsed)

    def _note_failure(self, error: IstioAuthError, batch: Sequence[Want], due: int) -> timedelta:
        """Nothing came of a batch: how long to wait before the next."""
        self.trouble = str(error)
        self._size = max(1, len(batch) // 2)
        if len(batch) == 1 and not isinstance(error, NotReady | NotAuthenticated | NotAuthorized | Exhausted):
            self._suspects.add(batch[0])
            self._note_refusal(batch[0], error)
        wait = self._ca.failed(error.retry_after)
        self._tell_away(error, due, wait)
        return wait

    def _note_refusal(self, want: Want, error: IstioAuthError) -> None:
        before = self._refused.get(want)
        backoff = before.backoff if before is not None else self._new_backoff(LONGEST_REFUSAL)
        self._refused[want] = _Refusal(backoff, str(error))
        wait = backoff.failed(error.retry_after)
        if isinstance(error, BadAnswer):
            self._metrics.bad_answers.labels(error.fault).inc()
        self._metrics.failed.labels("workload", error.code.name).inc()
        log.warning(
            "a workload's SVID was not renewed",
            spiffe_id=str(want.spiffe_id),
            reason=str(error),
            attempt=backoff.attempts,
            again_in_seconds=round(wait.total_seconds(), 1),
        )

    def _tell_away(self, error: IstioAuthError, due: int, wait: timedelta) -> None:
        self._metrics.failed.labels("workload", error.code.name).inc()
        end = first_to_lapse(self._cache.snapshot)
        left = "no certificate is held" if end is None else in_words(end - self._clock.now())
        log.warning(
            "the CA gives no certificates; those held are served on",
            reason=str(error),
            due=due,
            first_to_lapse_in=left,
            attempt=self._ca.attempts,
            again_in_seconds=round(wait.total_seconds(), 1),
        )

    def _tell_lapsed(self, lapsed: AbstractSet[SpiffeID]) -> None:
        self._metrics.lapsed.labels("workload").inc(len(lapsed))
        for spiffe_id in sorted(lapsed):
            log.error("a workload's SVID has ended before a new one came", spiffe_id=str(spiffe_id))


@dataclass(frozen=True, slots=True)
class Order:
    """A want on its way to the CA, with the new key it is asked for."""

    want: Want
    key: PrivateKey = field(repr=False)
    request: SigningRequest

    @classmethod
    def of(cls, want: Want) -> Order:
        """The order for a want."""
        key = new_private_key()
        return cls(want, key, request_for(want.spiffe_id, key, ttl=want.ttl))

    def judged(self, outcome: Outcome, bundles: BundleSource, now: datetime, draw: float) -> Held | IstioAuthError:
        """What the CA's outcome makes of it."""
        if isinstance(outcome, IstioAuthError):
            return outcome
        try:
            svid = accepted(outcome, self.key, self.want.spiffe_id, bundles=bundles, now=now)
        except BadAnswer as error:
            return error
        # From now on and not from its first instant, which a CA sets back: of a short life, half may be over already.
        return Held(svid, self.want, renewal_due(now, svid.not_after, draw=draw))
