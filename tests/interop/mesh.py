"""Workloads for the tests with Envoy: an application, a sidecar, and an agent that hands it what the test says."""

from __future__ import annotations

import asyncio
import itertools
import ssl
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from deploy.demo.application import Application, application
from deploy.demo.client import tls_client
from deploy.demo.envoy import Envoy, start_envoy
from deploy.demo.processes import Processes
from istio_auth.bundle import BundleSet, TrustBundle
from istio_auth.envoy.bootstrap import sidecar_bootstrap
from istio_auth.envoy.endpoint import HostPort, UnixPath
from istio_auth.envoy.spec import Inbound, Mode, Protocol, SidecarSpec, Upstream
from istio_auth.spiffe_id import SpiffeID
from istio_auth.svid import X509SVID
from istio_auth.x509_source import X509Context
from tests.fakes.sds import FakeAgent

FRONTEND = SpiffeID.parse("spiffe://cluster.local/ns/demo/sa/frontend")
BACKEND = SpiffeID.parse("spiffe://cluster.local/ns/demo/sa/backend")
INTRUDER = SpiffeID.parse("spiffe://cluster.local/ns/demo/sa/intruder")
_ANY_PORT = HostPort("127.0.0.1", 0)


@dataclass(frozen=True)
class Workload:
    """One workload that runs."""

    envoy: Envoy
    agent: FakeAgent
    application: Application
    ports: Mapping[str, int]

    async def count(self, counter: str) -> int:
        """The value of a counter, 0 if it was never touched."""
        return (await self.envoy.counters(counter.replace(".", r"\."))).get(counter, 0)

    async def counted(self, counter: str, since: int) -> None:
        """Wait until a counter has grown by exactly one."""
        async with asyncio.timeout(60):
            while (now := await self.count(counter)) <= since:  # noqa: ASYNC110  # Envoy tells no event of it
                await asyncio.sleep(0.02)
        assert now == since + 1, f"{counter} grew by {now - since}"


class Mesh:
    """All workloads of one test."""

    def __init__(self, folder: Path, processes: Processes, stack: AsyncExitStack) -> None:
        self.folder = folder
        self._processes = processes
        self._stack = stack
        self._numbers = itertools.count()
        self.agents: list[FakeAgent] = []

    async def workload(
        self,
        context: X509Context | None,
        *,
        inbound: tuple[Inbound, ...] = (),
        upstreams: tuple[Upstream, ...] = (),
        ready: bool = True,
        spiffe_id: SpiffeID = BACKEND,
        own_application: bool = True,
        **settings: object,
    ) -> Workload:
        """Start a workload; inbound listeners pass to its own application, by their protocol, unless told not to."""
        folder = self.folder / str(next(self._numbers))
        folder.mkdir()
        app = await self._stack.enter_async_context(application(spiffe_id.service_account or ""))
        agent = await self._stack.enter_async_context(FakeAgent(folder / "agent.sock", context))
        self.agents.append(agent)
        spec = SidecarSpec(
            id=context.svid.id if context else spiffe_id,
            agent_socket=UnixPath(str(agent.path)),
            inbound=tuple(to(app, one) for one in inbound) if own_application else inbound,
            upstreams=upstreams,
            admin=UnixPath(str(folder / "admin.sock")),
            **settings,  # type: ignore[arg-type]  # fields of SidecarSpec, by name
        )
        envoy = await start_envoy(self._processes, folder.name, sidecar_bootstrap(spec), folder)
        if ready:
            await envoy.wait_ready()
        return Workload(envoy, agent, app, await envoy.ports() if ready else {})

    def client(self, svid: X509SVID) -> ssl.SSLContext:
        """A TLS client of the test's own with this identity."""
        folder = self.folder / str(next(self._numbers))
        folder.mkdir()
        chain, key = folder / "chain.pem", folder / "key.pem"
        chain.write_bytes(svid.chain_pem())
        key.write_bytes(svid.key_pem())
        return tls_client(chain, key)


@asynccontextmanager
async def running_mesh() -> AsyncIterator[Mesh]:
    """An empty mesh; everything in it ends with the context."""
    with tempfile.TemporaryDirectory(prefix="mesh-") as name:  # pytest's own folders are too long for Unix sockets
        async with AsyncExitStack() as stack:
            processes = await stack.enter_async_context(Processes(Path(name)))
            mesh = Mesh(Path(name), processes, stack)
            yield mesh
            assert [agent.refused for agent in mesh.agents if agent.refused] == []


def holding(svid: X509SVID, *bundles: TrustBundle) -> X509Context:
    """What a workload with this SVID holds."""
    return X509Context((svid,), BundleSet(bundles))


def letting_in(
    *allow: SpiffeID,
    mode: Mode = Mode.STRICT,
    protocol: Protocol = Protocol.HTTP,
    name: str = "web",
    require_token: bool = False,
) -> Inbound:
    """An inbound listener on a free port."""
    return Inbound(_ANY_PORT, HostPort("127.0.0.1", 1), protocol, mode, allow, name, require_token)


def going_to(port: int, *expect: SpiffeID, protocol: Protocol = Protocol.HTTP, name: str = "backend") -> Upstream:
    """An upstream on loopback, found on a free port."""
    return Upstream(name, _ANY_PORT, HostPort("127.0.0.1", port), expect, protocol)


def to(app: Application, inbound: Inbound) -> Inbound:
    """The inbound listener with this application behind it."""
    port = app.http_port if inbound.protocol.is_http else app.tcp_port
    return replace(inbound, forward=HostPort("127.0.0.1", port))
