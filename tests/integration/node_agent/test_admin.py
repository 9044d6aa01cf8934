"""What an operator is told by a running agent: the real command lines, against a real agent's socket."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from envoy.service.discovery.v3.discovery_pb2 import DiscoveryResponse

from tests.fakes.ca import CAServer
from tests.fakes.certificate_client import FakeCA, Fault
from tests.fakes.clock import FakeClock
from tests.fakes.running_agent import MINE, RunningAgent, registration
from tests.fakes.sds_client import SDSStream
from tests.fakes.waiting import until
from tests.fakes.workload_api_stream import WorkloadAPIStream

EXECUTABLE = Path("/proc/self/exe").readlink()


@pytest.fixture
async def server(clock: FakeClock) -> AsyncIterator[CAServer]:
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


async def said(agent: RunningAgent, *words: str, code: int = 0) -> str:
    """What the command prints."""
    command = ["-c", "from node_agent.cli import main; main()", *words, "--admin-socket", str(agent.config.admin_at)]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    out, _ = await process.communicate()
    assert process.returncode == code, out.decode()
    return out.decode()


async def fresh(agent: RunningAgent, stream: SDSStream) -> DiscoveryResponse:
    """The answer that a renewal makes."""
    (held,) = agent.agent.cache.snapshot.held.values()
    agent.pass_time(held.due - agent.clock.now())
    return await stream.receive()


async def document(agent: RunningAgent, *words: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(await said(agent, *words, "--output", "json"))
    return found


async def test_status_tells_lives_renewals_and_clients(agent: RunningAgent) -> None:
    async with SDSStream(agent.socket, "default", "ROOTCA", "spiffe://cluster.local/other") as stream:
        await stream.receive()
        await until(lambda: agent.agent.workloads.discovery.consumers().current == 1)
        found = await document(agent, "status")
        text = await said(agent, "status")
        version = stream.version
    (held,) = agent.agent.cache.snapshot.held.values()
    assert found["agent"] == {
        "spiffe_id": "spiffe://cluster.local/agent/node-1",
        "not_after": "2030-01-01T13:00:00Z",
        "renewal": f"{agent.agent.identity.due:%FT%TZ}",
        "trouble": None,
        "since": None,
    }
    assert found["workloads"] == [
        {
            "spiffe_id": "spiffe://cluster.local/web",
            "not_after": "2030-01-01T13:00:00Z",
            "renewal": f"{held.due:%FT%TZ}",
            "trouble": None,
            "since": None,
        }
    ]
    assert found["first_lapse"] == "2030-01-01T13:00:00Z"
    (client,) = found["clients"]
    assert client["api"] == "sds"
    assert client["identities"] == ["spiffe://cluster.local/web"]
    assert client["waits_for"] == ["spiffe://cluster.local/other"]
    assert client["resources"] == ["default", "ROOTCA", "spiffe://cluster.local/other"]
    assert (client["version"], client["bundle"], client["bundle_sequence"]) == (version, "current", 1)
    assert (client["refusals"], client["refused"]) == (0, {})
    row = next(line for line in text.splitlines() if line.startswith("sds "))
    assert row.split("  ")[0] == "sds"
    assert "spiffe://cluster.local/web (test-sidecar)" in row
    assert version in row
    assert "1, current" in row
    assert "ends in 1 hour, renewed in" in text
    assert "the first workload loses its certificate in 1 hour" in text


async def test_status_tells_what_a_client_refused_until_it_takes_something(agent: RunningAgent) -> None:
    async with SDSStream(agent.socket, "default") as stream:
        await stream.receive(refusal="no such key type")
        await until(lambda: any(client.refused for client in agent.agent.workloads.discovery.clients()))
        text = await said(agent, "status")
        assert "1; now default: no such key type (code" in text
        assert "refused  default: no such key type (code" in text
        await fresh(agent, stream)
        await until(lambda: not any(client.refused for client in agent.agent.workloads.discovery.clients()))


async def test_status_tells_what_is_wrong_with_the_ca_and_with_a_workload(agent: RunningAgent) -> None:
    agent.server.ca.fault = Fault.WRONG_NAME
    agent.server.register(web=registration("/web"), api=registration("/api"))
    await until(lambda: len(agent.agent.cache.snapshot.wanted) == 2)
    await until(lambda: any(map(agent.agent.renewals.refusal, agent.agent.cache.snapshot.wanted.values())))
    assert "trouble" in (await said(agent, "status")).partition("Workload spiffe://cluster.local/api")[2]
    await agent.server.away()
    await until(lambda: "was not reached" in (agent.agent.sync.trouble or ""))
    found = await document(agent, "status")
    assert found["ca"]["in_sync"] is False
    assert "was not reached" in str(found["ca"])


async def test_explain_tells_what_a_process_earns_and_what_it_lacks(agent: RunningAgent) -> None:
    pid = str(os.getpid())
    assert (await document(agent, "explain", "--pid", pid))["earns"] == [
        {"spiffe_id": "spiffe://cluster.local/web", "through": []}
    ]
    agent.server.register(
        web=registration("/web", "unix:path:/usr/bin/web", "socket:main"),
        db=registration("/db", "unix:path:/usr/bin/db", "unix:supplementary_gid:77777"),
    )
    await until(lambda: len(agent.agent.cache.snapshot.registrations) == 2)
    found = await document(agent, "explain", "--pid", pid)
    assert str(MINE) in str(found["selectors"])
    assert f"unix:path:{EXECUTABLE}" in str(found["selectors"])
    assert found["earns"] == []
    assert found["nearest"] == {"spiffe_id": "spiffe://cluster.local/web", "missing": ["unix:path:/usr/bin/web"]}
    assert "unix:path:/usr/bin/web" in await said(agent, "explain", "--pid", pid)
    agent.server.register(web=registration("/web", "socket:main"))
    await until(lambda: len(agent.agent.cache.snapshot.registrations) == 1)
    assert "spiffe://cluster.local/web through socket:main" in await said(agent, "explain", "--pid", pid)


async def test_a_process_that_is_not_there_is_said_to_be_missing(agent: RunningAgent) -> None:
    assert "process 2147483646 can not be looked at" in await said(agent, "explain", "--pid", "2147483646", code=1)


async def test_where_no_agent_answers_it_is_said_where_it_was_looked_for(agent: RunningAgent) -> None:
    await agent.stop()
    text = await said(agent, "status", code=1)
    assert f"no agent answers at {agent.config.admin_at}" in text
    await agent.start()
    await said(agent, "status")


async def test_nobody_but_the_agents_user_can_ask(agent: RunningAgent) -> None:
    assert stat.S_IMODE(agent.config.admin_at.stat().st_mode) == 0o600


async def test_status_tells_what_a_stream_of_the_workload_api_has_taken(agent: RunningAgent) -> None:
    async with WorkloadAPIStream(agent.socket) as client:
        await client.receive()
        await until(lambda: agent.agent.workloads.workload_api.consumers().current == 1)
        (stream,) = (await document(agent, "status"))["clients"]
        assert (stream["api"], stream["resources"]) == ("workload-api", ["FetchX509SVID"])
        assert (stream["bundle"], stream["bundle_sequence"], stream["refusals"]) == ("current", 1, 0)
        assert stream["version"]
