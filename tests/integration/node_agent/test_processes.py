"""The agent and the CA as their operators run them: real processes, a real clock, certificates of seconds."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.fakes.processes import Machine
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
        held = stream.svid()
        # An agent whose own SVID ends first does not ask any more.
        await until(lambda: sum(line["event"] == "the agent has a new SVID" for line in machine.agent.lines()) > 1)
        await machine.ca.kill()
        await machine.agent.says("the CA gives no certificates; those held are served on")
        assert (await received(machine.socket)).chain == held.chain
        await machine.ca.start()
        await stream.receive()
        assert stream.svid().leaf.serial_number != held.leaf.serial_number
    assert not [line for line in machine.agent.lines() if "has ended before" in str(line["event"])]


async def test_an_agent_whose_every_certificate_has_lapsed_comes_back_by_itself(machine: Machine) -> None:
    await received(machine.socket)
    await machine.ca.kill()
    await machine.agent.says("the agent's own SVID has lapsed")
    await machine.agent.says("a workload's SVID has ended before a new one came")
    machine.token.unlink()
    await machine.ca.start()
    await received(machine.socket)
    ways = [line for line in machine.ca.lines() if line.get("method") == "node-key"]
    assert ways


async def test_no_secret_is_in_any_log(machine: Machine) -> None:
    svid, token = await received(machine.socket), machine.token.read_text().strip()
    assert await machine.agent.end() == 0
    for log in machine.folder.glob("*.log"):
        text = log.read_text()
        assert "PRIVATE KEY" not in text
        assert token not in text
        assert svid.key_pem().decode().splitlines()[1] not in text
