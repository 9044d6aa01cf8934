"""What the leader does: secrets of service accounts, the published root, and answers to certificate requests.

Only one replica does it at a time, by a Lease. If two did it for a moment, that would do no harm: every write names the
version that it was planned for, and one certificate more is just one more record.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass

import structlog
from prometheus_client.registry import CollectorRegistry

from ca.controller.loop import SecretController
from ca.controller.tally import ControllerMetrics, Tally
from ca.metrics import Gauge
from ca.platform.kubernetes.api.client import KubernetesAPI
from ca.platform.kubernetes.cluster_watch import Tasks
from ca.platform.kubernetes.events.recorder import EventRecorder
from ca.platform.kubernetes.leader.lease import LeaderElection
from ca.platform.kubernetes.requests.queue import RequestQueue
from ca.platform.kubernetes.roots.cluster_trust_bundle import TrustBundlePublisher
from ca.platform.kubernetes.roots.publisher import RootPublisher
from istio_auth.clock import Clock
from istio_auth.errors import IstioAuthError

_SERVED_AGAIN = 60.0  # seconds until it is asked again whether a kind is served
_MOST_NAMED = 5
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class LeaderWork:
    """What there is to do.

    Args:
        publisher: publishes the root in every managed namespace.
        trust_bundle: publishes it for volumes.
        controller: looks after secrets; None to leave them alone.
        queues: certificate requests to be answered.
        watches: what is watched for it, by name.
        tally: what the controller counts.
    """

    publisher: RootPublisher
    trust_bundle: TrustBundlePublisher
    controller: SecretController | None
    queues: Sequence[RequestQueue]
    watches: Mapping[str, Callable[[], Coroutine[None, None, None]]]
    tally: Tally


class Leadership:
    """Does the leader's work whenever this replica leads. Lives on one event loop.

    Args:
        api: the API server.
        election: tells when it leads.
        events: tells people.
        work: what there is to do.
        clock: tells the time.
    """

    def __init__(
        self, api: KubernetesAPI, election: LeaderElection, *, events: EventRecorder, work: LeaderWork, clock: Clock
    ) -> None:
        self._api = api
        self._election = election
        self._events = events
        self._work = work
        self._clock = clock

    @property
    def leading(self) -> bool:
        """Whether this replica leads at this instant."""
        return self._election.still_leading()

    def published(self, sequence: int) -> bool:
        """Whether the bundle with this sequence is in every place where it is read; only the leader knows."""
        held = self._work.publisher.published(sequence) is not None and not self._work.trust_bundle.lags(sequence)
        return held and self.leading

    def tasks(self) -> Tasks:
        """The tasks that stand for election, and do the leader's work whenever elected."""
        return {"events": self._events.run(), "leader election": self._election.run(self._lead)}

    def register(self, registry: CollectorRegistry) -> None:
        """Show the numbers of the controller."""
        if self._work.controller is not None:
            ControllerMetrics(registry, self._work.tally, self._work.controller.present(), self._clock)

    def gauges(self) -> tuple[Gauge, ...]:
        """The metrics that are looked up when somebody asks."""
        publisher, queues = self._work.publisher, self._work.queues
        return (
            Gauge.single("istio_auth_ca_leader", "1 on the replica that leads.", lambda: self.leading),
            Gauge.single(
                "istio_auth_ca_degraded",
                "1 if something is left alone that somebody keeps changing back; /readyz tells what; on the leader.",
                lambda: self.degraded() is not None,
            ),
            Gauge.single(
                "istio_auth_ca_namespaces_without_root",
                "Managed namespaces that do not hold the trust bundle; on the leader.",
                lambda: publisher.lacking,
            ),
            Gauge(
                "istio_auth_ca_requests_waiting",
                "Certificate requests without an answer, by kind; on the leader.",
                lambda: {(queue.resource.kind,): float(len(queue)) for queue in queues},
                ("kind",),
            ),
        )

    def degraded(self) -> str | None:
        """Why somebody should look; None if all is well, or another replica leads."""
        found = [] if self._work.controller is None else [self._work.controller.degraded()]
        if findings := self._work.publisher.findings:
            some = ", ".join(sorted(findings)[:_MOST_NAMED]) + (", ..." if len(findings) > _MOST_NAMED else "")
            found.append(f"the roots are not published in {len(findings)} namespaces, {some}: see the Events there")
        return "; ".join(filter(None, found)) or None

    async def _lead(self, term: int) -> None:
        _log.info("this replica does the leader's work", term=term)
        async with asyncio.TaskGroup() as tasks:
            for watch in self._work.watches.values():
                tasks.create_task(watch())
            tasks.create_task(self._work.publisher.run())
            tasks.create_task(self._work.trust_bundle.run())
            if self._work.controller is not None:
                tasks.create_task(self._work.controller.run())
            for queue in self._work.queues:
                tasks.create_task(self._answer(queue))

    async def _answer(self, queue: RequestQueue) -> None:
        """Answer requests as soon as the API server serves this kind: an older one may not."""
        told = False
        while not await self._is_served(queue):
            if not told:
                _log.warning("the API server does not serve these requests", kind=queue.resource.kind)
                told = True
            await asyncio.sleep(_SERVED_AGAIN)
        await queue.run()

    async def _is_served(self, queue: RequestQueue) -> bool:
        try:
            return await self._api.serves(queue.resource)
        except IstioAuthError:
            return True  # nobody can tell now, and the watch will log why
