"""One SDS client on its stream: what it is granted now, what it waits for and why, and the pushes to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from types import MappingProxyType
from typing import Generic, TypeVar

import structlog
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest, DiscoveryRequest

from istio_auth.door import UnixCaller
from istio_auth.errors import Exhausted, MalformedError
from istio_auth.spiffe_id import TrustDomain
from node_agent.metrics import Metrics
from node_agent.sds.acknowledgement import Holding
from node_agent.sds.secrets import Renderer, Resource, resolve, sort_of
from node_agent.sds.served import AnySession
from node_agent.sds.session import Answer, Kind
from node_agent.workloads.cache import WorkloadCache
from node_agent.workloads.entitlement import Entitlement

_MAX_TOLD = 100  # lines of the log on what one stream waits for
_MAX_SHOWN, _MAX_LENGTH = 10, 200  # names in such a line, and how much of each
log = structlog.get_logger()
Request = TypeVar("Request", DiscoveryRequest, DeltaDiscoveryRequest)


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
        self._times_told = 0
        self._refused: dict[str, str] = {}
        self._holding: tuple[object, Holding] | None = None  # by which snapshot
        self.refusals = 0

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
        """What it would not take, each with its own reason, until it takes that again."""
        return MappingProxyType(self._refused)

    @property
    def names(self) -> tuple[str, ...]:
        """What it is subscribed to."""
        return self._session.names

    @property
    def version(self) -> str:
        """Of the latest answer that it has accepted; empty before the first."""
        return self._session.accepted.version

    def sequence(self) -> int | None:
        """The bundle sequence that this version stands for; None if it holds no bundle of our own trust domain."""
        return self._session.accepted.sequence(self._session.names, self.view)

    async def run(self, requests: AsyncIterator[Request]) -> AsyncGenerator[Answer]:
        """The answers, for as long as the client sends or keeps its side open.

        Raises:
            MalformedError: the client asked for something that is not served here.
            Exhausted: it asked for too much.
        """
        future = asyncio.get_running_loop().create_future
        changed: asyncio.Future[None] = future()  # a task that waits for an event would be 2 KB more for each client
        end = self._cache.subscribe(lambda: None if changed.done() else changed.set_result(None))
        reading = asyncio.ensure_future(anext(requests, None))
        try:
            while True:
                await asyncio.wait({reading, changed}, return_when=asyncio.FIRST_COMPLETED)
                if changed.done():
                    changed = future()
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

    def pending(self) -> tuple[str, ...]:
        """The names that it waits for."""
        return self._session.pending(self.view)

    def holding(self) -> Holding:
        """Whether it has accepted the present roots of our own trust domain, if it wants them."""
        snapshot = self._cache.snapshot
        if self._holding is None or self._holding[0] is not snapshot:  # asked of thousands after each of their words
            self._holding = snapshot, self._session.holding(self.view)
        return self._holding[1]

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
        except (MalformedError, Exhausted) as error:
            log.warning(
                "an SDS client asked for what it can not have; its stream ends", reason=str(error), **self._who()
            )
            raise
        self._holding = None
        self._metrics.sds_requests.labels(reaction.kind.value).inc()
        if reaction.kind is Kind.ACK:
            self._forget_refusals(reaction.about)
            self._progress()
        if reaction.kind is Kind.NACK:
            self._note_refusal(reaction.about, reaction.detail or "it did not say")
        self._tell_pending()
        return reaction.response

    def _forget_refusals(self, taken: tuple[str, ...]) -> None:
        if self._refused:
            wanted = set(self.names).difference(taken)
            self._refused = {name: reason for name, reason in self._refused.items() if name in wanted}

    def _note_refusal(self, names: tuple[str, ...], reason: str) -> None:
        self.refusals += 1
        self._refused |= dict.fromkeys(names, reason)
        for name in names:
            self._metrics.sds_nacks.labels(sort_of(name).value).inc()
        log.error(
            "an SDS client refused its secrets and goes on with those it has",
            secrets=_shown(names),
            reason=reason,
            **self._who(),
        )

    def _tell_pending(self) -> None:
        pending = self.pending()
        if pending == self._told:
            return
        self._told = pending
        if not pending or self._times_told >= _MAX_TOLD:
            return
        self._times_told += 1
        if ids := self._entitled.ids:
            earned = list(map(str, ids))
            log.info("an SDS client waits for secrets", names=_shown(pending), earned=earned, **self._who())
        else:
            self._metrics.callers_unknown.inc()
            log.warning("no registration fits this caller; it waits", **self._entitled.explained(), **self._who())

    def _who(self) -> dict[str, str]:
        return {"caller": str(self._caller), "node": self._session.node_id}


def _shown(names: tuple[str, ...]) -> list[str]:
    """Names for a line of the log, which a client must not make as long as it likes."""
    more = [f"and {len(names) - _MAX_SHOWN} more"] if len(names) > _MAX_SHOWN else []
    return [name[:_MAX_LENGTH] for name in names[:_MAX_SHOWN]] + more
