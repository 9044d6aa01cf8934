"""Health, readiness and metrics over plain HTTP, on a port of their own.

`/healthz` answers as long as the event loop runs. `/readyz` says whether the daemon can do its work; if not, its status
is 503 and it has a line for each part that prevents that. A part that is degraded, but prevents nothing, has a line
there too. `/metrics` is what Prometheus scrapes. Nothing here is secret, and nothing can be changed.
"""

from __future__ import annotations

from datetime import timedelta
from types import TracebackType
from typing import Self

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from istio_auth.daemon.readiness import Readiness
from istio_auth.door.tcp_socket import listening_sockets
from istio_auth.host_port import HostPort


class HealthServer:
    """Serves inside its `async with` block.

    Args:
        address: where to listen.
        readiness: what `/readyz` asks.
        registry: what `/metrics` shows.
        patience: how long a caller may be silent, also in the middle of a request.
    """

    def __init__(
        self,
        address: HostPort,
        readiness: Readiness,
        registry: CollectorRegistry,
        *,
        patience: timedelta = timedelta(seconds=30),
    ) -> None:
        self.address = address
        self._readiness = readiness
        self._registry = registry
        site = web.Application()
        site.add_routes(
            [web.get("/healthz", _alive), web.get("/readyz", self._ready), web.get("/metrics", self._metrics)]
        )
        # A scraper that keeps its connection open must not delay our exit.
        self._runner = web.AppRunner(
            site, access_log=None, shutdown_timeout=1.0, keepalive_timeout=patience.total_seconds()
        )

    async def __aenter__(self) -> Self:
        """Listen; from then on `address` has the real port.

        Raises:
            ConfigurationError: there is no such address here.
            NotReady: somebody else listens there, or the machine is out of sockets.
        """
        sockets = listening_sockets(self.address.host, self.address.port)
        self.address = HostPort(*sockets[0].getsockname()[:2])
        await self._runner.setup()
        for listening in sockets:
            await web.SockSite(self._runner, listening).start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._runner.cleanup()

    async def _ready(self, _request: web.Request) -> web.Response:
        problems, remarks = self._readiness.problems(), self._readiness.remarks()
        lines = [f"{name}: {reason}\n" for name, reason in problems.items()] or ["ok\n"]
        lines += [f"degraded: {name}: {reason}\n" for name, reason in remarks.items()]
        return web.Response(status=503 if problems else 200, text="".join(lines))

    async def _metrics(self, request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(self._registry), headers={"Content-Type": content_type})


async def _alive(_request: web.Request) -> web.Response:
    return web.Response(text="ok\n")
