"""The agent and the CA as their operators run them: real processes, a real clock, certificates of seconds."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.fakes.processes import Machine, fetch, status
from tests.fakes.sds_client import SDSStream, received
from tests.fakes.waiting import until


@pytest.fixture
async def machine(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Machine]:
    """A CA and an agent; the parameter is how long certificates live."""
    machine = Machine(tmp_path, ttl=getattr(request, "param", "8s"))
    async with machine.ca:
        await machine.prepare()
        async with machine.agent:
            yield machine


async def test_a_killed_agent_comes_back_without_its_token_and_serves_fresh_certificates(machine: Machine) -> None:
    first = await received(machine.socket)
    await machine.agent_is_ready()
    machine.token.unlink()
    await machine.agent.kill()
    shutil.rmtree(machine.folder / "workloads", ignore_errors=True)  # kept where this folder is in memory
    await machine.agent.start()
    second = await received(machine.socket)
    assert second.leaf.serial_number != first.leaf.serial_number
    assert second.key_pem() != first.key_pem()
    assert await machine.agent.end() == 0


@pytest.mark.parametrize("machine", ["24s"], indirect=True)  # in half of it a busy machine starts a CA again
async def test_certificates_rotate_and_outlive_a_ca_that_is_away_for_longer_than_half_of_their_life(
    machine: Machine,
) -> None:
    await received(machine.socket)
    async with SDSStream(machine.socket, "default") as stream:
        await stream.receive()
        first = stream.svid()
        await stream.receive()  # half of a life later
        assert stream.svid().leaf.serial_number != first.leaf.serial_number
        assert stream.svid().not_before > first.not_before
        # An agent whose own SVID ends first does not ask any more.
        await until(lambda: sum(line["event"] == "the agent has a new SVID" for line in machine.agent.lines()) > 1)
        already, said = len(machine.agent.lines()), len(machine.ca.lines())
        await machine.ca.kill()
        await machine.agent.says("the CA gives no certificates; those held are served on", after=already)
        held = await received(machine.socket)
        while stream.svid().leaf.serial_number != held.leaf.serial_number:
            await stream.receive()
        await machine.ca.start()
        await machine.ca.says("ready", after=said)
        in_time = datetime.now(UTC) < held.not_after - timedelta(seconds=9)  # what the agent's next attempts may take
        await stream.receive()
        assert stream.svid().leaf.serial_number != held.leaf.serial_number
    lapsed = [line for line in machine.agent.lines() if "has ended before" in str(line["event"])]
    assert not (lapsed and in_time)


async def test_an_agent_whose_every_certificate_has_lapsed_comes_back_by_itself(machine: Machine) -> None:
    await received(machine.socket)
    await machine.ca.kill()
    # By how it is, and not by what it said: on a slow machine an SVID may have lapsed, and come back, before.
    await until(lambda: status(machine.agent_health) == 503)
    await until(lambda: b"istio_auth_agent_svids_held 0.0" in fetch(machine.agent_health, "/metrics"))
    await machine.agent.says("the agent's own SVID has lapsed")
    await machine.agent.says("a workload's SVID has ended before a new one came")
    machine.token.unlink()
    already = len(machine.ca.lines())
    await machine.ca.start()
    await received(machine.socket)
    ways = [line for line in machine.ca.lines()[already:] if line.get("method") == "node-key"]
    assert ways


async def test_no_secret_is_in_any_log(machine: Machine) -> None:
    svid, token = await received(machine.socket), machine.token.read_text().strip()
    assert await machine.agent.end() == 0
    for log in machine.folder.glob("*.log"):
        text = log.read_text()
        assert "PRIVATE KEY" not in text
        assert token not in text
        assert svid.key_pem().decode().splitlines()[1] not in text
