"""gRPC's own health service on the agent's sockets: whether workloads can be served now (gRPC health checking, v1)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from datetime import timedelta

from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from istio_auth.errors import MissingError
from istio_auth.rpc.method import Call, Method, Service

NAME = "grpc.health.v1.Health"
LOOK = timedelta(seconds=1)  # how long a watcher may wait for news


class Health:
    """The service.

    Args:
        services: what is served; all of it is well or none.
        ready: whether it is.
        look: how often watchers are told of a change, at most.
    """

    def __init__(self, services: Iterable[Service], ready: Callable[[], bool], *, look: timedelta = LOOK) -> None:
        self._names = frozenset({"", *(each.name for each in services)})
        self._ready, self._look = ready, look

    def service(self) -> Service:
        """What a server serves."""
        check = Method.unary(self._check, HealthCheckRequest, HealthCheckResponse)
        watch = Method.stream(self._watch, HealthCheckRequest, HealthCheckResponse)
        return Service(NAME, {"Check": check, "Watch": watch})

    async def _check(self, request: HealthCheckRequest, _call: Call) -> HealthCheckResponse:
        if request.service not in self._names:
            raise MissingError(f"{request.service[:100]!a} is not served here", public="unknown service")
        return self._status(request.service)

    async def _watch(
        self, requests: AsyncIterator[HealthCheckRequest], _call: Call
    ) -> AsyncGenerator[HealthCheckResponse]:
        told: HealthCheckResponse | None = None
        async for request in requests:
            while True:
                if (status := self._status(request.service)) != told:
                    yield status
                    told = status
                await asyncio.sleep(self._look.total_seconds())

    def _status(self, service: str) -> HealthCheckResponse:
        if service not in self._names:
            return HealthCheckResponse(status=HealthCheckResponse.SERVICE_UNKNOWN)
        serving = HealthCheckResponse.SERVING if self._ready() else HealthCheckResponse.NOT_SERVING
        return HealthCheckResponse(status=serving)
