"""What happens around an agent: its sockets vanish, its clock jumps, callers connect and say nothing."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from istio_auth.rpc.server import Limits
from node_agent import app, front, sockets
from node_agent.config import SocketSettings
from tests.fakes.ca import CAServer
from tests.fakes.certificate_client import FakeCA
from tests.fakes.clock import FakeClock
from tests.fakes.running_agent import RunningAgent, registration
from tests.fakes.sds_client import SDSStream
from tests.fakes.waiting import until

DAY = timedelta(days=1)


@pytest.fixture
async def server(clock: FakeClock) -> AsyncIterator[CAServer]:
    async with CAServer(FakeCA(clock)) as server:
        server.register(web=registration("/web"))
        yield server


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "LOOK_AT_SOCKETS", 0.05)


async def joined(agent: RunningAgent) -> RunningAgent:
    agent.give_token()
    agent.agent.identity.look_again()
    await agent.joined()
    await agent.served("/web")
    return agent


async def test_a_socket_that_was_removed_is_made_again_and_who_is_connected_stays(
    server: CAServer, tmp_path: Path, clock: FakeClock
) -> None:
    async with RunningAgent(server, tmp_path, clock) as agent:
        await joined(agent)
        async with SDSStream(agent.socket, "default") as stays:
            await stays.receive()
            agent.socket.unlink()
            await until(agent.socket.exists)
            async with SDSStream(agent.socket, "default") as comes:
                await comes.receive()
            (held,) = agent.agent.cache.snapshot.held.values()
            agent.pass_time(held.due - clock.now())
            await stays.receive()


async def test_a_folder_for_sockets_that_was_removed_is_made_again_if_it_is_our_own(
    server: CAServer, tmp_path: Path, clock: FakeClock
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    socket = run / "agent.sock"
    async with RunningAgent(
        server, tmp_path, clock, run_folder=run, socket=(SocketSettings(socket, "main", "0600"),)
    ) as agent:
        await joined(agent)
        shutil.rmtree(run)
        await until(socket.exists)
        async with SDSStream(socket, "default") as stream:
            await stream.receive()
        await until(agent.config.admin_at.exists)


async def test_a_folder_of_an_operator_that_was_removed_makes_the_agent_unready_until_it_is_back(
    server: CAServer, tmp_path: Path, clock: FakeClock
) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    sockets = (SocketSettings(tmp_path / "agent.sock", "main", "0600"), SocketSettings(theirs / "web.sock", "web"))
    async with RunningAgent(server, tmp_path, clock, socket=sockets) as agent:
        await joined(agent)
        shutil.rmtree(theirs)
        await until(lambda: "sockets" in agent.daemon.readiness.problems())
        assert "web.sock is gone" in agent.daemon.readiness.problems()["sockets"]
        async with SDSStream(agent.socket, "default") as stream:
            await stream.receive()
        theirs.mkdir()
        await until(lambda: not agent.daemon.readiness.problems())
        async with SDSStream(theirs / "web.sock", "default") as stream:
            await stream.receive()


async def test_a_socket_that_another_has_put_in_our_place_is_left_alone(
    server: CAServer, tmp_path: Path, clock: FakeClock
) -> None:
    async with RunningAgent(server, tmp_path, clock) as agent:
        await joined(agent)
        agent.socket.unlink()
        other = await asyncio.start_unix_server(lambda _reader, writer: writer.close(), agent.socket)
        await until(lambda: "another process listens" in agent.daemon.readiness.problems().get("sockets", ""))
        assert agent.socket.exists()
        other.close()
        await until(lambda: not agent.daemon.readiness.problems())
    assert not agent.socket.exists()


def row(path: str) -> str:
    return f'[[registration]]\nspiffe_id = "spiffe://cluster.local{path}"\nselectors = ["socket:main"]\n'


async def test_what_is_wrong_with_one_file_hides_no_change_of_another(
    server: CAServer, tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "LOOK_AT_FILES", timedelta(milliseconds=50))
    rows = tmp_path / "registrations.toml"
    rows.write_text(row("/web"))
    async with RunningAgent(server, tmp_path, clock, registrations=rows) as agent:
        (agent.config.state_folder / "spent-token").mkdir()  # so whether a token was used can not be told
        agent.give_token()
        rows.write_text(row("/web") + row("/db"))
        await until(lambda: len(agent.agent.cache.snapshot.registrations) == 2)
        assert not agent.agent.identity.lives()


async def test_a_reload_takes_each_file_for_itself(
    server: CAServer, tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "LOOK_AT_FILES", timedelta(hours=1))
    rows = tmp_path / "registrations.toml"
    rows.write_text(row("/web"))
    async with RunningAgent(server, tmp_path, clock, registrations=rows) as agent:
        (tmp_path / "pin.json").write_text("{")
        rows.write_text(row("/web") + row("/db"))
        agent.daemon.reload()
        await until(lambda: len(agent.agent.cache.snapshot.registrations) == 2)


async def test_a_clock_that_jumps_a_day_ahead_and_back_costs_nothing_that_time_does_not_mend(
    server: CAServer, tmp_path: Path, clock: FakeClock
) -> None:
    async with RunningAgent(server, tmp_path, clock) as agent:
        await joined(agent)
        async with SDSStream(agent.socket, "default") as stream:
            await stream.receive()
            for jump in (DAY, -DAY):
                before = stream.svid().leaf.serial_number
                agent.pass_time(jump)
                await until(lambda: agent.agent.identity.lives() and agent.agent.sync.connected)
                if jump > timedelta():
                    await stream.receive()
                    assert stream.svid().leaf.serial_number != before
                    assert stream.svid().not_after > clock.now(), "nothing is served that has ended"
            # Now the certificates are of tomorrow. Whoever comes gets one that is valid today, sooner or later.
            async with SDSStream(agent.socket, "default") as comes:
                await comes.receive()
                while comes.svid().not_before > clock.now():
                    await comes.receive()
                assert comes.svid().not_before <= clock.now() < comes.svid().not_after
        assert not agent.daemon.readiness.problems()


async def test_a_caller_that_connects_and_says_nothing_is_sent_away(
    server: CAServer, tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(front, "LIMITS", Limits(first_word=timedelta(seconds=1)))
    async with RunningAgent(server, tmp_path, clock) as agent:
        reader, writer = await asyncio.open_unix_connection(agent.socket)
        async with asyncio.timeout(60):
            while await reader.read(1000):  # gRPC's own settings
                pass
        writer.close()
