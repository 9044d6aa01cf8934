"""One SDS client on its stream: what it is granted now, what it waits for and why, and the pushes to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from types import MappingProxyType
from typing import Generic, Protocol, TypeVar

import structlog
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest, DiscoveryRequest

from istio_auth.door import UnixCaller
from istio_auth.errors import MalformedError
from istio_auth.spiffe_id import TrustDomain
from node_agent.cache import WorkloadCache
from node_agent.entitlement import Entitlement
from node_agent.metrics import Metrics
from node_agent.sds.secrets import Renderer, Resource, resolve
from node_agent.sds.session import Answer, Holding, Kind, Reaction, View

log = structlog.get_logger()
Request = TypeVar("Request", DiscoveryRequest, DeltaDiscoveryRequest)
_Request_contra = TypeVar("_Request_contra", DiscoveryRequest, DeltaDiscoveryRequest, contravariant=True)


class AnySession(Protocol[_Request_contra, Answer]):
    """What the two protocols have in common (`Session`, `DeltaSession`)."""

    names: tuple[str, ...]
    node_id: str

    def receive(self, request: _Request_contra, view: View) -> Reaction[Answer]:
        """Take in a request."""
        ...

    def refresh(self, view: View) -> Answer | None:
        """The answer that a change of the world calls for, or None."""
        ...

    def pending(self, view: View) -> tuple[str, ...]:
        """The subscribed names for which there is nothing yet."""
        ...

    def holding(self, view: View) -> Holding:
        """Whether the client has accepted the present bundles, if it wants any."""
        ...


class Served(Protocol):
    """A client, whichever protocol it speaks, for who looks at all of them."""

    @property
    def caller(self) -> UnixCaller:
        """The process at the other end."""
        ...

    @property
    def entitled(self) -> Entitlement:
        """What it may have."""
        ...

    @property
    def refused(self) -> Mapping[str, str]:
        """What it would not take, and its own reason, until it takes something again."""
        ...

    def pending(self) -> tuple[str, ...]:
        """The names that it waits for."""
        ...

    def holding(self) -> Holding:
        """Whether it has accepted the present bundles, if it wants any."""
        ...

    def name(self) -> str:
        """How to call it where it is one of many."""
        ...


class SDSClient(Generic[Request, Answer]):
    """A session with a caller who is known.

    Args:
        caller: the process at the other end.
        entitled: what it may have.
        session: the state of its stream, by one of the two protocols.
        cache: what the workloads hold.
        render: makes resources, shared by all clients.
        trust_domain: our own.
        metrics: counts.
        progress: called when it has accepted an answer.
    """

    def __init__(
        self,
        caller: UnixCaller,
        entitled: Entitlement,
        session: AnySession[Request, Answer],
        *,
        cache: WorkloadCache,
        render: Renderer,
        trust_domain: TrustDomain,
        metrics: Metrics,
        progress: Callable[[], None],
    ) -> None:
        self._progress = progress
        self._caller, self._entitled = caller, entitled
        self._cache, self._render, self._trust_domain, self._metrics = cache, render, trust_domain, metrics
        self._session = session
        self._told: tuple[str, ...] = ()
        self._refused: dict[str, str] = {}

    @property
    def caller(self) -> UnixCaller:
        """The process at the other end."""
        return self._caller

    @property
    def entitled(self) -> Entitlement:
        """What it may have."""
        return self._entitled

    @property
    def refused(self) -> Mapping[str, str]:
        """What it would not take, and its own reason, until it takes something again."""
        return MappingProxyType(self._refused)

    async def run(self, requests: AsyncIterator[Request]) -> AsyncIterator[Answer]:
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
        return self._session.holding(self.view)

    def name(self) -> str:
        """How to call it where it is one of many."""
        ids, caller = self._entitled.ids, self._caller
        return f"{ids[0] if ids else caller} ({self._session.node_id or f'pid {caller.pid}'})"

    def view(self, name: str) -> Resource | None:
        """What a name gives to it now."""
        return resolve(name, self._entitled.context, self._render, self._trust_domain)

    def _refresh(self) -> Answer | None:
        response = self._session.refresh(self.view)
        self._tell_pending()
        return response

    def _receive(self, request: Request) -> Answer | None:
        try:
            reaction = self._session.receive(request, self.view)
        except MalformedError as error:
            log.warning("an SDS client asked for what is not served; its stream ends", reason=str(error), **self._who())
            raise
        self._metrics.sds_requests.labels(reaction.kind.value).inc()
        if reaction.kind is Kind.ACK:
            self._refused.clear()
            self._progress()
        if reaction.kind is Kind.NACK:
            self._refused |= dict.fromkeys(reaction.refused, reaction.detail or "it did not say")
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
        if ids := self._entitled.ids:
            earned = list(map(str, ids))
            log.info("an SDS client waits for secrets", names=list(pending), earned=earned, **self._who())
        else:
            self._metrics.callers_unknown.inc()
            log.warning("no registration fits this caller; it waits", **self._entitled.explained(), **self._who())

    def _who(self) -> dict[str, str]:
        return {"caller": str(self._caller), "node": self._session.node_id}
