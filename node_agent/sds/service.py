"""Envoy's SecretDiscoveryService on the agent's sockets: attests each caller and serves it as a client of its own.

`StreamSecrets` (state of the world) and `DeltaSecrets`; gRPC itself answers `FetchSecrets` with UNIMPLEMENTED. Who
calls is looked at once, when the stream opens, and stays true for it: the connection is the calling process's own. A
caller that no registration fits gets nothing, and its stream stays open: it is served when a registration comes. Why it
waits is in the log.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable

from envoy.service.discovery.v3.discovery_pb2 import (
    DeltaDiscoveryRequest,
    DeltaDiscoveryResponse,
    DiscoveryRequest,
    DiscoveryResponse,
)
from envoy.service.secret.v3 import sds_pb2

from istio_auth.door import UnixCaller
from istio_auth.errors import NotAuthenticated
from istio_auth.rpc.method import Call, Method, Service
from istio_auth.spiffe_id import TrustDomain
from istio_auth.subscribers import Subscribers
from node_agent.attest import WorkloadAttestor, attest_all
from node_agent.metrics import Metrics
from node_agent.sds.acknowledgement import Holding
from node_agent.sds.client import Request, SDSClient
from node_agent.sds.delta import DeltaSession
from node_agent.sds.secrets import Renderer
from node_agent.sds.served import AnySession, Served
from node_agent.sds.session import MAX_NAMES, Answer, Session
from node_agent.sync import Consumers
from node_agent.workloads.cache import WorkloadCache
from node_agent.workloads.entitlement import Entitlement

SERVICE: str = sds_pb2.DESCRIPTOR.services_by_name["SecretDiscoveryService"].full_name  # loaded for reflection, too
_MAX_REQUEST = 512 << 10  # a hundred names of the greatest length, and what Envoy says of itself


class SecretDiscovery:
    """The service.

    Args:
        cache: what the workloads hold.
        trust_domain: our own.
        attestors: look at callers.
        metrics: counts.
        max_names: how many names one stream may subscribe to.
    """

    def __init__(
        self,
        cache: WorkloadCache,
        trust_domain: TrustDomain,
        *,
        attestors: Iterable[WorkloadAttestor],
        metrics: Metrics,
        max_names: int = MAX_NAMES,
    ) -> None:
        self._max_names = max_names
        self._cache, self._trust_domain = cache, trust_domain
        self._attestors, self._metrics = tuple(attestors), metrics
        self._render = Renderer()
        self._clients: set[Served] = set()
        self._subscribers = Subscribers()
        cache.subscribe(self._forget_keys)

    def service(self) -> Service:
        """What a server serves."""
        stream = Method.stream(self._stream, DiscoveryRequest, DiscoveryResponse, max_request_bytes=_MAX_REQUEST)
        delta = Method.stream(
            self._delta, DeltaDiscoveryRequest, DeltaDiscoveryResponse, max_request_bytes=_MAX_REQUEST
        )
        return Service(SERVICE, {"StreamSecrets": stream, "DeltaSecrets": delta})

    def subscribe(self, changed: Callable[[], None]) -> None:
        """Call `changed` whenever `consumers` may say something else, for as long as we run."""
        self._subscribers.add(changed)

    def clients(self) -> frozenset[Served]:
        """Who is served now."""
        return frozenset(self._clients)

    def waiting(self) -> int:
        """How many clients wait for something that they asked for."""
        return sum(bool(client.pending()) for client in self._clients)

    def consumers(self) -> Consumers:
        """Who is served bundles, and who of them has accepted the present ones."""
        holdings = [(client, client.holding()) for client in self._clients]
        behind = sorted(client.name() for client, holding in holdings if holding is Holding.LAGGING)
        current = sum(holding is Holding.CURRENT for _, holding in holdings)
        return Consumers.of(current + len(behind), behind)

    def _stream(self, requests: AsyncIterator[DiscoveryRequest], call: Call) -> AsyncGenerator[DiscoveryResponse]:
        return self._served(requests, call, Session(max_names=self._max_names))

    def _delta(
        self, requests: AsyncIterator[DeltaDiscoveryRequest], call: Call
    ) -> AsyncGenerator[DeltaDiscoveryResponse]:
        return self._served(requests, call, DeltaSession(max_names=self._max_names))

    async def _served(
        self, requests: AsyncIterator[Request], call: Call, session: AnySession[Request, Answer]
    ) -> AsyncGenerator[Answer]:
        if not isinstance(call.caller, UnixCaller):
            raise NotAuthenticated(f"{call.caller} is no process of this machine")
        selectors = await attest_all(self._attestors, call.caller)
        client = SDSClient(
            call.caller,
            Entitlement(selectors, self._cache),
            session,
            cache=self._cache,
            render=self._render,
            trust_domain=self._trust_domain,
            metrics=self._metrics,
            progress=self._tell,
        )
        self._clients.add(client)
        try:
            async with contextlib.aclosing(client.run(requests)) as responses:
                async for response in responses:
                    self._metrics.sds_responses.inc()
                    yield response
        finally:
            self._clients.discard(client)
            self._tell()

    def _tell(self) -> None:
        self._subscribers.tell()

    def _forget_keys(self) -> None:
        self._render.keep(self._cache.snapshot.held)
