"""Our source on our own agent's socket: identity, rotation, restart and redaction, from end to end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from istio_auth import WorkloadAPISource, client_context, is_id, server_context
from istio_auth.errors import NotAuthorized
from istio_auth.spiffe_id import SpiffeID
from istio_auth.workload_api import WorkloadAPIClient
from tests.fakes.ca import CAServer
from tests.fakes.certificate_client import FakeCA
from tests.fakes.clock import FakeClock
from tests.fakes.running_agent import RunningAgent, registration
from tests.fakes.tls import meet, talk
from tests.fakes.waiting import until

PATIENCE = timedelta(seconds=60)
WEB = SpiffeID.parse("spiffe://cluster.local/web")


@pytest.fixture
async def server(clock: FakeClock) -> AsyncIterator[CAServer]:
    clock.time = datetime.now(UTC)  # TLS contexts look at the machine's
    async with CAServer(FakeCA(clock)) as server:
        server.register(web=registration("/web"))
        yield server


@pytest.fixture
async def agent(server: CAServer, tmp_path: Path, clock: FakeClock) -> AsyncIterator[RunningAgent]:
    async with RunningAgent(server, tmp_path, clock) as agent:
        agent.give_token()
        agent.agent.identity.look_again()
        await agent.joined()
        await agent.served("/web")
        yield agent


@pytest.fixture
async def source(agent: RunningAgent) -> AsyncIterator[WorkloadAPISource]:
    async with WorkloadAPISource(f"unix://{agent.socket}") as source:
        await source.ready(PATIENCE)
        yield source


async def test_a_workload_gets_its_identity_and_meets_another(source: WorkloadAPISource) -> None:
    assert source.svid().id == WEB
    talk(*meet(client_context(source, is_id(WEB)), server_context(source, is_id(WEB))))


async def test_the_asyncio_client_gets_the_same(agent: RunningAgent, source: WorkloadAPISource) -> None:
    async with WorkloadAPIClient(f"unix://{agent.socket}") as client:
        assert (await client.fetch_x509_context()).svids == source.x509_context().svids
        assert set(await client.fetch_x509_bundles()) == set(source.x509_context().bundles)


async def test_a_rotation_is_followed(agent: RunningAgent, source: WorkloadAPISource) -> None:
    before = source.x509_context()
    (held,) = agent.agent.cache.snapshot.held.values()
    agent.pass_time(held.due - agent.clock.now())
    await until(lambda: source.x509_context() is not before)
    assert source.svid().leaf != before.svid.leaf


async def test_an_agent_that_was_started_anew_is_found_again(agent: RunningAgent, source: WorkloadAPISource) -> None:
    held = source.svid()
    await agent.stop()
    await until(lambda: source.status().trouble)
    assert source.svid() == held
    await agent.start()
    await until(lambda: source.status().trouble is None)
    assert source.svid().id == WEB


async def test_a_registration_that_is_taken_away_takes_the_identity_away(
    server: CAServer, agent: RunningAgent, source: WorkloadAPISource
) -> None:
    assert agent.agent.cache.snapshot.held
    server.register()
    await until(lambda: not source.status().ready)
    with pytest.raises(NotAuthorized, match="knows no identity of this workload"):
        source.svid()
    server.register(web=registration("/web"))
    await source.ready(PATIENCE)
