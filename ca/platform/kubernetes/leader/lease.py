"""LeaderElection: has one replica at a time do the leader's work, by a Lease (coordination.k8s.io/v1).

What a candidate may do is decided in `ca.platform.kubernetes.leader.candidate`; here it is done. The leader's work is
cancelled before anybody else can begin, and on an orderly stop the lease is released after the work has stopped.

A process may be suspended at any point, so having led a moment ago proves nothing: whoever writes calls `still_leading`
right before each write. A write that was sent before may still arrive after another replica took over: it must carry a
resource version, or do no harm if it is done twice.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Final

import structlog

from ca.platform.kubernetes.api.client import KubernetesAPI
from ca.platform.kubernetes.api.objects import Object, member, micro_time, object_of, text
from ca.platform.kubernetes.api.resources import LEASES
from ca.platform.kubernetes.leader.candidate import DEFAULT_TIMING, LONGEST_PAUSE, Candidate, LeaseRecord, LeaseTiming
from istio_auth.clock import Clock
from istio_auth.errors import ConflictError, IstioAuthError, MissingError, NotReady

LEASE: Final = "istio-ca-leader"
_TRIES = 3  # renewals that may go unanswered within the renew deadline
_log = structlog.get_logger()


def steady_seconds() -> float:
    """Seconds of a clock that is never set. It also counts sleep of the machine, if the system has such a clock."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


class LeaderElection:
    """Stands for election, for as long as it runs. Lives on one event loop.

    Args:
        api: the API server.
        namespace: where the Lease is.
        name: its name.
        identity: the name of this process in the Lease; no other may have it, so a pod's name alone is not enough.
        clock: tells the time that people read in the Lease.
        timing: how patient it is.
        steady: tells steady seconds, by which everything is decided.
    """

    def __init__(
        self,
        api: KubernetesAPI,
        namespace: str,
        name: str,
        *,
        identity: str,
        clock: Clock,
        timing: LeaseTiming = DEFAULT_TIMING,
        steady: Callable[[], float] = steady_seconds,
    ) -> None:
        self._api = api
        self._namespace, self._name = namespace, name
        self._timing = timing
        self._clock = clock
        self._steady = steady
        self._candidate = Candidate(identity, timing)
        self._body: Object = {}
        self._fault: str | None = None

    @property
    def leader(self) -> str:
        """Who led when the Lease was last read; empty if nobody did."""
        return self._candidate.seen.holder if self._candidate.seen else ""

    def still_leading(self) -> bool:
        """Whether this process leads at this instant; to be asked right before each write."""
        return self._candidate.leads(self._steady())

    async def run(self, lead: Callable[[int], Coroutine[None, None, None]]) -> None:
        """Do `lead` whenever this process leads, and cancel it in time; return when `lead` returns by itself.

        Args:
            lead: what the leader does; its argument grows with every term, over all replicas.

        Raises:
            BaseException: whatever `lead` raises.
        """
        while True:
            await self._attempt()
            if not self.still_leading():
                await asyncio.sleep(self._pause())
            elif await self._reign(lead):
                return

    async def _reign(self, lead: Callable[[int], Coroutine[None, None, None]]) -> bool:
        """Lead until the lease is lost or the work ends by itself; whether it did."""
        assert self._candidate.seen is not None
        term = self._candidate.seen.transitions
        _log.info("leading", lease=self._name, term=term)
        work = asyncio.create_task(lead(term))
        try:
            while self.still_leading() and not work.done():
                rest = self._candidate.remaining(self._steady()).total_seconds()
                await asyncio.wait({work}, timeout=min(self._pause(), rest))
                if not work.done() and self.still_leading():
                    await self._attempt()
            done = work.done()
        finally:
            await self._end(work)
        if not work.cancelled():
            work.result()
        if not done:
            _log.warning("no longer leading", lease=self._name, term=term, leader=self.leader, reason=self._fault)
        return done

    async def _end(self, work: asyncio.Task[None]) -> None:
        """Stop the work, and only then let others begin."""
        work.cancel()
        try:
            await asyncio.wait({work})
        finally:
            leading = self.still_leading()
            wanted = self._candidate.resign()
        if not work.cancelled() and (error := work.exception()):
            _log.error("the work of the leader failed", lease=self._name, reason=f"{type(error).__name__}: {error}")
        if leading and wanted is not None:
            try:
                async with asyncio.timeout(self._timing.retry_period.total_seconds()):
                    await self._write(wanted)
            except (IstioAuthError, TimeoutError) as error:
                _log.warning("the lease was not released", lease=self._name, reason=str(error) or "no answer")

    async def _attempt(self) -> None:
        """Read the Lease, unless we lead, and write it if there is something to write."""
        leading = self.still_leading()
        limit = self._timing.renew_deadline / _TRIES
        if leading:  # the work must be stopped in time, even if the API server does not answer
            limit = min(limit, self._candidate.remaining(self._steady()))
        try:
            async with asyncio.timeout(limit.total_seconds()):
                if not leading:
                    await self._look()
                await self._propose()
        except (IstioAuthError, TimeoutError) as error:
            self._report(str(error) or "the API server does not answer")
        else:
            self._fault = None

    async def _propose(self) -> None:
        sent = self._steady()
        if (wanted := self._candidate.proposal(sent, micro_time(self._clock.now()))) is None:
            return
        try:
            await self._write(wanted)
        except ConflictError:  # somebody else wrote it: if that is a new leader, we stop leading here
            await self._look()
        except MissingError:  # somebody deleted it: the next attempt makes it again, unless another is faster
            self._body = {}
            raise NotReady("the lease was deleted") from None
        else:
            self._candidate.written(wanted, sent=sent, now=self._steady())

    async def _look(self) -> None:
        try:
            self._body = await self._api.get(LEASES, self._name, namespace=self._namespace)
        except MissingError:
            self._body = {}
            self._candidate.observe(None, self._steady())
        else:
            self._candidate.observe(_record(self._body, self._timing), self._steady())

    async def _write(self, record: LeaseRecord) -> None:
        body = _body(record, self._body, self._namespace, self._name)
        if self._body:
            self._body = await self._api.replace(LEASES, body)
        else:
            self._body = await self._api.create(LEASES, body, namespace=self._namespace)

    def _report(self, reason: str) -> None:
        if self._fault != reason:
            self._fault = reason
            _log.warning("the lease can not be looked after", lease=self._name, reason=reason)

    def _pause(self) -> float:
        return self._timing.retry_period.total_seconds() * random.uniform(1, LONGEST_PAUSE)  # noqa: S311  # jitter


def _record(body: Object, timing: LeaseTiming) -> LeaseRecord:
    """The record in a Lease, with safe values in the place of unusable ones."""
    seconds, transitions = member(body, "spec", "leaseDurationSeconds"), member(body, "spec", "leaseTransitions")
    return LeaseRecord(
        text(body, "spec", "holderIdentity"),
        timedelta(seconds=seconds) if isinstance(seconds, int) and seconds > 0 else timing.duration,
        transitions if isinstance(transitions, int) else 0,
        acquired=text(body, "spec", "acquireTime"),
        renewed=text(body, "spec", "renewTime"),
        version=text(body, "metadata", "resourceVersion"),
    )


def _body(record: LeaseRecord, former: Object, namespace: str, name: str) -> Object:
    """The Lease with this record, and with everything that others put into it."""
    spec = object_of(former.get("spec")) | {
        "holderIdentity": record.holder or None,
        "leaseDurationSeconds": int(record.duration.total_seconds()),
        "leaseTransitions": record.transitions,
        "acquireTime": record.acquired or None,
        "renewTime": record.renewed or None,
    }
    metadata: Object = {"name": name, "namespace": namespace}
    return {"metadata": object_of(former.get("metadata")) or metadata, "spec": spec}
