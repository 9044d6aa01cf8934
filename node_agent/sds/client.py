"""One SDS client on its stream: what it is granted now, what it waits for and why, and the pushes to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from collections.abc import Set as AbstractSet

import structlog
from envoy.service.discovery.v3.discovery_pb2 import DiscoveryRequest, DiscoveryResponse

from istio_auth.door import UnixCaller
from istio_auth.errors import MalformedError
from istio_auth.registration import Registration, Selector, nearest
from istio_auth.spiffe_id import SpiffeID, TrustDomain
from istio_auth.x509_source import X509Context
from node_agent.cache import WorkloadCache
from node_agent.metrics import Metrics
from node_agent.sds.secrets import Renderer, Resource, resolve
from node_agent.sds.session import Holding, Kind, Session

log = structlog.get_logger()


class SDSClient:
    """A session with a caller who is known.

    Args:
        caller: the process at the other end.
        selectors: what was observed of it.
        cache: what the workloads hold.
        render: makes resources, shared by all clients.
        trust_domain: our own.
        metrics: counts.
        progress: called when it has accepted an answer.
    """

    def __init__(
        self,
        caller: UnixCaller,
        selectors: AbstractSet[Selector],
        *,
        cache: WorkloadCache,
        render: Renderer,
        trust_domain: TrustDomain,
        metrics: Metrics,
        progress: Callable[[], None],
    ) -> None:
        self._progress = progress
        self._caller, self._selectors = caller, selectors
        self._cache, self._render, self._trust_domain, self._metrics = cache, render, trust_domain, metrics
        self._session = Session()
        self._registrations: tuple[Registration, ...] | None = None
        self._ids: tuple[SpiffeID, ...] = ()
        self._seen: object = None
        self._context: X509Context
        self._told: tuple[str, ...] = ()
        self._look()

    async def run(self, requests: AsyncIterator[DiscoveryRequest]) -> AsyncIterator[DiscoveryResponse]:
        """The answers, for as long as the client sends or keeps its side open.

        Raises:
            MalformedError: the client asked for something that is not served here.
        """
        changed = asyncio.Event()
        end = self._cache.subscribe(changed.set)
        reading = asyncio.ensure_future(anext(requests, None))
        waiting = asyncio.ensure_future(changed.wait())
        try:
            while True:
                await asyncio.wait({reading, waiting}, return_when=asyncio.FIRST_COMPLETED)
                if waiting.done():
                    changed.clear()
                    waiting = asyncio.ensure_future(changed.wait())
                    response = self._refresh()
                else:
                    if (request := reading.result()) is None:
                        return
                    response = self._receive(request)
                    reading = asyncio.ensure_future(anext(requests, None))
                if response is not None:
                    yield response
        finally:
            end()
            reading.cancel()
            waiting.cancel()

    def pending(self) -> tuple[str, ...]:
        """The names that it waits for."""
        return self._session.pending(self.view)

    def holding(self) -> Holding:
        """Whether it has accepted the present bundles, if it wants any."""
        self._look()
        return self._session.holding(self.view)

    def name(self) -> str:
        """How to call it where it is one of many."""
        who = str(self._ids[0]) if self._ids else str(self._caller)
        return f"{who} ({self._session.node_id or f'pid {self._caller.pid}'})"

    def view(self, name: str) -> Resource | None:
        """What a name gives to it now."""
        return resolve(name, self._context, self._render, self._trust_domain)

    def _look(self) -> None:
        """Take up the present snapshot."""
        if self._seen is (snapshot := self._cache.snapshot):
            return
        self._seen = snapshot
        if snapshot.registrations is not self._registrations:
            self._registrations = snapshot.registrations
            self._ids = snapshot.ids_for(self._selectors)
        self._context = snapshot.context_of(self._ids)

    def _refresh(self) -> DiscoveryResponse | None:
        self._look()
        response = self._session.refresh(self.view)
        self._tell_pending()
        return response

    def _receive(self, request: DiscoveryRequest) -> DiscoveryResponse | None:
        self._look()
        try:
            reaction = self._session.receive(request, self.view)
        except MalformedError as error:
            log.warning("an SDS client asked for what is not served; its stream ends", reason=str(error), **self._who())
            raise
        self._metrics.sds_requests.labels(reaction.kind.value).inc()
        if reaction.kind is Kind.ACK:
            self._progress()
        if reaction.kind is Kind.NACK:
            for name in reaction.refused:
                self._metrics.sds_nacks.labels(name).inc()
            log.error(
                "an SDS client refused its secrets and goes on with those it has",
                secrets=list(reaction.refused),
                reason=reaction.detail or "it did not say",
                **self._who(),
            )
        self._tell_pending()
        return reaction.response

    def _tell_pending(self) -> None:
        pending = self.pending()
        if pending == self._told:
            return
        self._told = pending
        if not pending:
            return
        if self._ids:
            earned = list(map(str, self._ids))
            log.info("an SDS client waits for secrets", names=list(pending), earned=earned, **self._who())
        else:
            self._metrics.callers_unknown.inc()
            log.warning("no registration fits this caller; it waits", **self._explained(), **self._who())

    def _explained(self) -> dict[str, object]:
        """What keeps the caller from an identity."""
        selectors = sorted(map(str, self._selectors))
        if (near := nearest(self._registrations or (), self._selectors)) is None:
            return {"selectors": selectors, "nearest": "nothing is registered"}
        missing = sorted(map(str, near.missing(self._selectors)))
        return {"selectors": selectors, "nearest": str(near.spiffe_id), "missing": missing}

    def _who(self) -> dict[str, str]:
        return {"caller": str(self._caller), "node": self._session.node_id}
