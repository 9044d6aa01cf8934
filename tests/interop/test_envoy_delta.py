"""A real Envoy asks a real agent for secrets by the delta protocol: served, rotated, and served after a restart."""

from __future__ import annotations

import json
import tempfile
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from deploy.demo.application import application
from deploy.demo.client import http_get, tls_client
from deploy.demo.envoy import Envoy, start_envoy
from deploy.demo.processes import Processes
from istio_auth.envoy.bootstrap import sidecar_bootstrap
from istio_auth.envoy.endpoint import UnixPath
from istio_auth.envoy.spec import SidecarSpec
from istio_auth.spiffe_id import SpiffeID
from tests.fakes.ca import CAServer
from tests.fakes.certificate_client import FakeCA
from tests.fakes.clock import FakeClock
from tests.fakes.running_agent import RunningAgent, registration
from tests.fakes.waiting import until
from tests.interop.mesh import letting_in, to

WEB, CLIENT = (SpiffeID.parse(f"spiffe://cluster.local/{name}") for name in ("web", "client"))


@pytest.fixture
async def agent() -> AsyncIterator[RunningAgent]:
    clock = FakeClock(datetime.now(UTC))
    with tempfile.TemporaryDirectory(prefix="delta-") as name:  # pytest's own folders are too long for Unix sockets
        async with CAServer(FakeCA(clock)) as server, RunningAgent(server, Path(name), clock) as agent:
            server.register(web=registration("/web"))
            agent.give_token()
            agent.agent.identity.look_again()
            await agent.served("/web")
            yield agent


async def test_an_envoy_is_served_by_the_delta_protocol(agent: RunningAgent) -> None:
    async with Processes(agent.folder) as processes, application("web") as app:
        folder = agent.folder / "envoy"
        folder.mkdir()
        spec = SidecarSpec(
            id=WEB,
            agent_socket=UnixPath(str(agent.socket)),
            inbound=(to(app, letting_in(CLIENT)),),
            admin=UnixPath(str(folder / "admin.sock")),
        )
        bootstrap = json.dumps(sidecar_bootstrap(spec))
        assert bootstrap.count('"api_type": "GRPC"') == 2
        delta = json.loads(bootstrap.replace('"api_type": "GRPC"', '"api_type": "DELTA_GRPC"'))
        envoy = await start_envoy(processes, "web", delta, folder)
        await envoy.wait_ready()
        port = (await envoy.ports())["inbound_web"]
        await calls(agent, port)
        await until(lambda: agent.agent.workloads.discovery.consumers().current == 1)

        serial = shown(agent)
        (held,) = agent.agent.cache.snapshot.held.values()
        agent.pass_time(held.due - agent.clock.now())
        await until(lambda: shown(agent) != serial)
        await calls(agent, port)
        await rotated(envoy)

        await agent.stop()
        await calls(agent, port)
        await agent.start()
        await agent.served("/web")
        await until(lambda: agent.agent.workloads.discovery.consumers().current == 1)
        await calls(agent, port)
        assert await refusals(envoy) == 0


def shown(agent: RunningAgent) -> int:
    """The serial number of what the workload holds."""
    (held,) = agent.agent.cache.snapshot.held.values()
    return held.svid.leaf.serial_number


async def calls(agent: RunningAgent, port: int) -> None:
    """A call by mutual TLS gets through."""
    svid = agent.server.ca.authority.svid(CLIENT.path)
    chain, key = agent.folder / "chain.pem", agent.folder / "key.pem"
    chain.write_bytes(svid.chain_pem())
    key.write_bytes(svid.key_pem())
    assert (await http_get(port, tls=tls_client(chain, key))).caller == str(CLIENT)


async def rotated(envoy: Envoy) -> None:
    """The listener has taken the new certificate."""
    counter = "listener.inbound_web.server_ssl_socket_factory.ssl_context_update_by_sds"
    counted: list[int] = []

    async def look() -> bool:
        counted.append((await envoy.counters(counter.replace(".", r"\."))).get(counter, 0))
        return counted[-1] >= 3  # the certificate, the roots, and the certificate again

    while not await look():
        pass


async def refusals(envoy: Envoy) -> int:
    """How many updates the Envoy would not take."""
    return sum((await envoy.counters(r"sds\..*\.update_rejected")).values())
