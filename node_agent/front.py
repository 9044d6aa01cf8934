"""What every agent listens on: health and metrics, the workloads' sockets, and the operator's socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta

import structlog

from istio_auth.daemon.http import HealthServer
from istio_auth.daemon.lifecycle import Daemon
from istio_auth.door import Door
from istio_auth.errors import IstioAuthError
from istio_auth.rpc.server import Limits, RpcServer
from node_agent.admin.server import AdminServer
from node_agent.admin.status import Status
from node_agent.config import Config
from node_agent.limits import raise_descriptor_limit
from node_agent.metrics import Metrics
from node_agent.serving import Workloads
from node_agent.sockets import Sockets

DRAIN = timedelta(seconds=5)
# A local connection is cheap to keep; after half a day its caller is attested anew. The quota limits the streams.
LIMITS = Limits(connection_age=timedelta(hours=12), streams=1_000_000)
log = structlog.get_logger()


@asynccontextmanager
async def front(
    config: Config, daemon: Daemon, *, workloads: Workloads, status: Status, metrics: Metrics
) -> AsyncIterator[None]:
    """Serve from entering to leaving; leaving ends calls and streams in good order.

    Args:
        config: where to listen.
        daemon: whose readiness is shown, and that supervises what runs.
        workloads: who is served.
        status: what operators are told.
        metrics: what is measured.

    Raises:
        ConfigurationError: it can not listen where it is told to.
        NotReady: another process listens there.
    """

    def refused(listener: str, _error: IstioAuthError) -> None:
        metrics.callers_refused.labels(listener).inc()  # the door logs the reason

    async with AsyncExitStack() as stack:
        await stack.enter_async_context(HealthServer(config.metrics_listen, daemon.readiness, metrics.registry))
        doors = 1 if config.csi.endpoint is None else 2  # the other one is behind the sockets of pods
        at_the_door = config.limits.at_the_door(raise_descriptor_limit(), doors=doors)
        if at_the_door.connections < config.limits.connections:
            log.warning("the limit of open files allows fewer connections", connections=at_the_door.connections)
        door = await stack.enter_async_context(Door(limits=at_the_door, on_refused=refused))
        metrics.gauge("connections", "Open connections at the sockets", lambda: door.connections)
        server = RpcServer(
            door,
            workloads.services(lambda: not daemon.readiness.problems()),
            limits=LIMITS,
            guard=workloads.quota.stream,
        )
        await server.start()
        stack.push_async_callback(server.stop, DRAIN)
        sockets = Sockets(config.sockets, config.run_folder, door)
        await sockets.listen()
        stack.callback(door.stop_listening)
        daemon.readiness.add("sockets", sockets.trouble)
        daemon.supervise("sockets", sockets.keep_listening())
        admin = await stack.enter_async_context(AdminServer(config.admin_at, status))
        keeping = daemon.supervise("admin socket", admin.keep_listening())
        stack.push_async_callback(_end, keeping)  # or it would make the socket again when we leave
        for writer in workloads.files:
            daemon.supervise(f"files {writer.settings.name}", writer.run())
        yield


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])
