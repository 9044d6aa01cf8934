"""The sockets of pods: one server behind all of them, and each socket leads to its own volume.

Whoever reaches a socket has the identity of its pod, for nobody else can reach it: it is in a private folder, and the
pod sees it through its mount. So callers are known by the socket alone, and not by their processes, which may live
where we can not see them; and what a pod opens and asks for is bounded for that pod, whatever users it runs as. SDS,
the Workload API, health and reflection are served, as on the agent's own sockets.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing
from datetime import timedelta
from types import TracebackType
from typing import Self

from google.protobuf.message import Message

from istio_auth.bundle import BundleSet
from istio_auth.door import Door, UnixCaller
from istio_auth.errors import IstioAuthError, NotAuthenticated
from istio_auth.rpc.method import Call, Method, Service
from istio_auth.rpc.server import Limits, RpcServer
from istio_auth.spiffe_id import TrustDomain
from node_agent.attest.socket import SocketAttestor
from node_agent.csi.volume import Volume
from node_agent.limits import LimitsSettings, at_the_door_of_pods, raise_descriptor_limit
from node_agent.metrics import Metrics
from node_agent.quota import Quota
from node_agent.sds.service import SecretDiscovery
from node_agent.sync import Consumers
from node_agent.workload_api.health import Health
from node_agent.workload_api.reflection import reflection
from node_agent.workload_api.service import WorkloadAPI
from node_agent.workloads.cache import WorkloadCache

_LISTENER = "volumes"
_DRAIN = timedelta(seconds=2)
_LIMITS = Limits(connection_age=timedelta(hours=12), streams=100_000)


class PodServices:
    """What one pod is served.

    Args:
        cache: what it holds.
        trust_domain: our own.
        metrics: counts.
    """

    def __init__(self, cache: WorkloadCache, trust_domain: TrustDomain, metrics: Metrics) -> None:
        attestors = (SocketAttestor(),)
        self._discovery = SecretDiscovery(cache, trust_domain, attestors=attestors, metrics=metrics)
        self._workload_api = WorkloadAPI(
            cache, attestors=attestors, registrations_missing=lambda: None, metrics=metrics
        )
        self.services = (self._discovery.service(), self._workload_api.service())
        self._methods = {(each.name, name): method for each in self.services for name, method in each.methods.items()}

    def stream(self, method: tuple[str, str], requests: AsyncIterator[Message], call: Call) -> AsyncGenerator[Message]:
        """Answer a call."""
        answer = self._methods[method].stream_function
        assert answer is not None
        return answer(requests, call)

    def consumers(self) -> Consumers:
        """Who in the pod is served bundles."""
        return self._discovery.consumers() + self._workload_api.consumers()


class PodSockets:
    """Serves from entering to leaving.

    Args:
        trust_domain: our own.
        limits: how much one pod may take.
        metrics: counts.
    """

    def __init__(self, trust_domain: TrustDomain, limits: LimitsSettings, metrics: Metrics) -> None:
        self._trust_domain, self._metrics = trust_domain, metrics
        self._quota = Quota(limits, lambda limit: metrics.streams_refused.labels(limit).inc(), by_pod=True)
        self._served: dict[str, PodServices] = {}
        self._stack = AsyncExitStack()
        self._door: Door

    async def __aenter__(self) -> Self:
        limits = at_the_door_of_pods(raise_descriptor_limit())
        async with AsyncExitStack() as stack:
            self._door = await stack.enter_async_context(Door(limits=limits, on_refused=self._refused))
            server = RpcServer(self._door, self._services(), limits=_LIMITS, guard=self._quota.stream)
            await server.start()
            stack.push_async_callback(server.stop, _DRAIN)
            stack.callback(self._door.stop_listening)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def open(self, volume: Volume) -> None:
        """Let the pod of this volume in; again does no harm.

        Raises:
            IstioAuthError: its socket can not be made.
        """
        folder = volume.folder
        if folder.key in self._served:
            return
        self._served[folder.key] = PodServices(volume.cache, self._trust_domain, self._metrics)
        try:
            path = folder.content / volume.publication.attributes.socket
            await self._door.listen_unix(path, name=folder.key, mode=0o666, as_one=True)
        except IstioAuthError:
            del self._served[folder.key]
            raise

    def close(self, volume: Volume) -> None:
        """Let nobody in any more by the socket of this volume; whether or not it was open."""
        self._door.stop_listening_at(volume.folder.content / volume.publication.attributes.socket)
        self._served.pop(volume.folder.key, None)

    def consumers(self) -> Consumers:
        """Who is served bundles, in all pods."""
        return sum((each.consumers() for each in self._served.values()), Consumers())

    def _services(self) -> list[Service]:
        """The services of any pod, each of whose methods leads to the caller's own."""
        shape = PodServices(WorkloadCache(BundleSet()), self._trust_domain, self._metrics).services
        own = [
            Service(each.name, {name: self._routed(each.name, name, method) for name, method in each.methods.items()})
            for each in shape
        ]
        health = Health(own, lambda: True).service()
        return [*own, health, *reflection([*own, health])]

    def _routed(self, service: str, name: str, method: Method) -> Method:
        async def stream(requests: AsyncIterator[Message], call: Call) -> AsyncGenerator[Message]:
            served = self._served.get(call.caller.socket) if isinstance(call.caller, UnixCaller) else None
            if served is None:
                raise NotAuthenticated(f"{call.caller}: this volume is not published any more")
            async with aclosing(served.stream((service, name), requests, call)) as responses:
                async for response in responses:
                    yield response

        return Method(method.request, None, stream, method.max_request_bytes)

    def _refused(self, _listener: str, _error: IstioAuthError) -> None:
        self._metrics.callers_refused.labels(_LISTENER).inc()
