"""The agent on real sockets: gRPC over TLS to a CA that misbehaves on request, secrets over Unix sockets."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
import structlog

from istio_auth.bundle import BundleSet
from istio_auth.errors import ConfigurationError
from istio_auth.pem import read_certificates
from istio_auth.registration import earned
from istio_auth.spiffe_id import SpiffeID
from istio_auth.svid import spiffe_id_of
from istio_auth.verify import verify_chain
from node_agent.app import check
from node_agent.config import SocketSettings
from tests.fakes.authority import FakeAuthority
from tests.fakes.ca import CAServer
from tests.fakes.certificate_client import FakeCA, Fault
from tests.fakes.clock import FakeClock
from tests.fakes.running_agent import MINE, RunningAgent, registration
from tests.fakes.sds_client import SERVICE, SDSStream
from tests.fakes.waiting import until

HOUR = timedelta(hours=1)


def id_of(path: Path) -> str:
    """Whose SVID is kept in a file."""
    return str(spiffe_id_of(read_certificates(path.read_bytes().partition(b"-----END PRIVATE KEY-----")[2])[0]))


def as_they_are(message: bytes) -> bytes:
    return message


@pytest.fixture
async def server(clock: FakeClock) -> AsyncIterator[CAServer]:
    async with CAServer(FakeCA(clock)) as server:
        server.register(web=registration("/web"))
        yield server


@pytest.fixture
async def agent(server: CAServer, tmp_path: Path, clock: FakeClock) -> AsyncIterator[RunningAgent]:
    async with RunningAgent(server, tmp_path, clock) as agent:
        yield agent


@pytest.fixture
async def joined(agent: RunningAgent) -> RunningAgent:
    agent.give_token()
    agent.agent.identity.look_again()
    await agent.joined()
    await agent.served("/web")
    return agent


class TestJoining:
    async def test_a_token_and_a_pinned_root_are_enough_for_a_workload_to_be_served(
        self, agent: RunningAgent, clock: FakeClock
    ) -> None:
        async with SDSStream(agent.socket, "default", "ROOTCA") as stream:
            agent.give_token()
            agent.agent.identity.look_again()
            await stream.receive()
            svid, roots = stream.svid(), stream.roots()
        bundles = BundleSet((agent.server.ca.root.bundle(),))
        assert str(verify_chain(svid.chain, bundles, clock.now())) == "spiffe://cluster.local/web"
        assert roots == (agent.server.ca.root.certificate,)
        assert str(agent.agent.identity.svid and agent.agent.identity.svid.id) == "spiffe://cluster.local/agent/node-1"

    async def test_secrets_on_disk_are_for_the_agent_alone(self, joined: RunningAgent) -> None:
        folder = joined.config.state_folder
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in folder.iterdir())
        assert {file.name for file in folder.iterdir()} >= {"node-key.pem", "svid.pem", "spent-token"}

    async def test_no_workloads_key_is_ever_on_disk(self, joined: RunningAgent) -> None:
        (held,) = joined.agent.cache.snapshot.held.values()
        for file in joined.folder.rglob("*"):
            assert not file.is_file() or held.svid.key_pem() not in file.read_bytes()

    async def test_readiness_follows(self, agent: RunningAgent) -> None:
        assert set(agent.daemon.readiness.problems()) == {"identity", "registrations"}
        agent.give_token()
        agent.agent.identity.look_again()
        await until(lambda: not agent.daemon.readiness.problems())

    async def test_more_registrations_than_fit_a_usual_message_arrive(self, joined: RunningAgent) -> None:
        joined.server.register(large=replace(registration("/large"), hint="x" * (5 << 20)))
        await joined.served("/large")

    @pytest.mark.parametrize("impostor", ["another workload's name", "another root"])
    async def test_the_token_is_not_shown_to_a_server_that_is_not_the_ca(
        self, agent: RunningAgent, impostor: str
    ) -> None:
        server = agent.server
        if impostor == "another root":
            server.present(server.ca.foreign)
        else:
            server.present(server.ca.authority, SpiffeID.parse("spiffe://cluster.local/ca2"))
        agent.give_token()
        with structlog.testing.capture_logs() as lines:
            agent.agent.identity.look_again()
            await until(lambda: [line for line in lines if line["event"] == "the agent's own SVID was not renewed"])
        assert server.handshakes == []
        reason = next(line["reason"] for line in lines if line["event"] == "the agent's own SVID was not renewed")
        assert ("ca2" if impostor != "another root" else "does not chain to the bundle") in reason
        server.present(server.ca.authority)
        agent.agent.identity.look_again()
        await agent.joined()


class TestRotation:
    async def test_workloads_and_agent_get_fresh_certificates_over_a_fresh_connection(
        self, joined: RunningAgent
    ) -> None:
        async with SDSStream(joined.socket, "default") as stream:
            await stream.receive()
            before, own = stream.svid(), joined.agent.identity.svid
            joined.pass_time(HOUR * 0.6)
            await stream.receive()
            assert stream.svid().leaf.serial_number != before.leaf.serial_number
            assert stream.svid().key_pem() != before.key_pem()
        await until(lambda: joined.agent.identity.svid is not own)
        now_own = joined.agent.identity.svid
        assert now_own is not None
        await until(lambda: joined.server.handshakes[-1] == f"{now_own.leaf.serial_number:x}")
        await joined.joined()

    async def test_a_new_registration_is_served_without_being_asked_for_again(self, joined: RunningAgent) -> None:
        async with SDSStream(joined.socket, "spiffe://cluster.local/db") as stream:
            joined.server.register(web=registration("/web"), db=registration("/db"))
            await stream.receive()
            assert str(stream.svid("spiffe://cluster.local/db").id) == "spiffe://cluster.local/db"

    async def test_a_bundle_reaches_the_clients_and_the_ca_hears_of_it(self, joined: RunningAgent) -> None:
        second = FakeAuthority(now=joined.clock.now())
        async with SDSStream(joined.socket, "default", "ROOTCA") as stream:
            await stream.receive()
            joined.server.publish(sequence=2, extra=second)
            await stream.receive()
            assert set(stream.roots()) == {joined.server.ca.root.certificate, second.certificate}
            await until(
                lambda: [
                    report
                    for report in joined.server.reports
                    if (report.bundle_sequence, report.consumers, report.consumers_current) == (2, 1, 1)
                ]
            )
        await joined.stop()
        await joined.start()
        assert joined.agent.trust.own.sequence == 2

    async def test_a_client_that_has_not_taken_the_bundle_is_named_to_the_ca(self, joined: RunningAgent) -> None:
        async with SDSStream(joined.socket, "ROOTCA") as stream:
            await stream.receive()
            joined.server.publish(sequence=2, extra=FakeAuthority(now=joined.clock.now()))
            await until(lambda: [report for report in joined.server.reports if report.laggards])
            (report, *_) = [report for report in joined.server.reports if report.laggards]
            assert list(report.laggards) == ["spiffe://cluster.local/web (test-sidecar)"]


class TestAnOutage:
    async def test_longer_than_half_a_life_costs_no_workload_its_certificate(self, joined: RunningAgent) -> None:
        async with SDSStream(joined.socket, "default") as old:
            await old.receive()
            await joined.server.away()
            joined.pass_time(HOUR * 0.9)
            async with SDSStream(joined.socket, "default") as fresh:
                await fresh.receive()
                assert fresh.svid().chain == old.svid().chain
            await joined.server.back()
            joined.pass_time(timedelta())
            await old.receive()
        assert old.answers == 2

    async def test_after_which_everything_had_lapsed_heals_by_itself(self, joined: RunningAgent) -> None:
        joined.take_token()
        async with SDSStream(joined.socket, "default") as stream:
            await stream.receive()
            await joined.server.away()
            joined.pass_time(3 * HOUR)
            await until(lambda: not joined.agent.cache.snapshot.held)
            joined.server.ca.calls.clear()
            await joined.server.back()
            await stream.receive()
        assert "recover" in joined.server.ca.calls
        assert "enrol" not in joined.server.ca.calls

    async def test_in_which_the_ca_accepts_calls_and_answers_none(
        self, server: CAServer, tmp_path: Path, clock: FakeClock
    ) -> None:
        async with RunningAgent(server, tmp_path, clock, ca_timeout=timedelta(seconds=2)) as agent:
            agent.give_token()
            agent.agent.identity.look_again()
            await agent.served("/web")
            before = agent.agent.cache.snapshot.held
            server.hang.clear()
            with structlog.testing.capture_logs() as lines:
                agent.pass_time(HOUR * 0.6)
                await until(lambda: any("those held are served on" in line["event"] for line in lines))
            assert agent.agent.cache.snapshot.held == before
            server.hang.set()
            await until(lambda: agent.agent.cache.snapshot.held != before)

    async def test_with_bad_answers_leaves_what_is_held(self, joined: RunningAgent) -> None:
        before = joined.agent.cache.snapshot.held
        joined.server.ca.fault = Fault.WRONG_KEY
        joined.pass_time(HOUR * 0.6)
        registry = joined.agent.metrics.registry
        await until(lambda: registry.get_sample_value("istio_auth_agent_bad_answers_total", {"fault": "key"}))
        assert joined.agent.cache.snapshot.held == before
        joined.server.ca.fault = Fault.NONE
        await until(lambda: joined.agent.cache.snapshot.held != before)


class TestARestart:
    async def test_needs_no_token_and_serves_clients_again(self, joined: RunningAgent, clock: FakeClock) -> None:
        joined.take_token()
        async with SDSStream(joined.socket, "default") as stream:
            await stream.receive()
            before = stream.svid()
            await joined.stop()
            with pytest.raises(grpc.aio.AioRpcError) as ended:
                await stream.receive()
            assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
        await joined.start()
        async with SDSStream(joined.socket, "default") as stream:
            await stream.receive()
            after = stream.svid()
            assert (after.id, after.not_after > clock.now()) == (before.id, True)  # the same one, where it was kept
        assert joined.server.ca.calls.count("enrol") == 1

    async def test_finds_sockets_of_a_killed_agent_and_replaces_them(
        self, server: CAServer, tmp_path: Path, clock: FakeClock
    ) -> None:
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(str(tmp_path / "agent.sock"))
        async with RunningAgent(server, tmp_path, clock) as agent:
            agent.give_token()
            agent.agent.identity.look_again()
            async with SDSStream(agent.socket, "default") as stream:
                await stream.receive()

    async def test_while_the_ca_is_away_serves_what_was_held_and_is_up_to_date_when_it_is_back(
        self, server: CAServer, tmp_path: Path, clock: FakeClock
    ) -> None:
        async with RunningAgent(server, tmp_path, clock, allow_disk_cache=True) as agent:
            agent.give_token()
            agent.agent.identity.look_again()
            await agent.joined()
            async with SDSStream(agent.socket, "default") as stream:
                await stream.receive()
                before = stream.svid()
            kept = tmp_path / "workloads"
            await until(lambda: {id_of(path) for path in kept.glob("*.pem")} == {str(before.id)})
            await server.away()
            await agent.stop()
            await agent.start()
            assert not agent.daemon.readiness.problems()
            async with SDSStream(agent.socket, "default") as stream:
                await stream.receive()
                assert stream.svid().chain == before.chain
            server.register(web=registration("/web"), api=registration("/api"))
            await server.back()
            await agent.served("/api")
            assert agent.agent.cache.snapshot.held[before.id].svid.chain == before.chain
            server.register(api=registration("/api"))
            await until(lambda: {id_of(path) for path in kept.glob("*.pem")} == {"spiffe://cluster.local/api"})

    async def test_without_a_folder_in_memory_keeps_no_key_and_refuses_a_disk_that_it_is_given(
        self, joined: RunningAgent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("node_agent.app.is_in_memory", lambda _path: False)  # whatever this machine has
        await joined.stop()
        with structlog.testing.capture_logs() as lines:
            await joined.start()
        assert any(
            line["event"] == "nothing is kept for the next start: the runtime folder is not in memory; set keep_folder"
            for line in lines
        )
        named = replace(joined.config, keep_folder=tmp_path / "kept")
        with pytest.raises(ConfigurationError, match="allow_disk_cache"):
            check(named)
        check(replace(named, allow_disk_cache=True))


class TestAForeignCA:
    async def test_with_istios_contract_alone_serves_the_workloads_of_a_local_file(
        self, tmp_path: Path, clock: FakeClock
    ) -> None:
        file = tmp_path / "registrations.toml"
        file.write_text(f'[[registration]]\nspiffe_id = "spiffe://cluster.local/web"\nselectors = ["{MINE}"]\n')
        async with (
            CAServer(FakeCA(clock), node_service=False) as server,
            RunningAgent(server, tmp_path, clock, registrations=file) as agent,
        ):
            agent.give_token()
            agent.agent.identity.look_again()
            async with SDSStream(agent.socket, "default", "ROOTCA") as stream:
                await stream.receive()
                before = stream.svid()
                agent.pass_time(HOUR * 0.6)
                await stream.receive()
                assert stream.svid().leaf.serial_number != before.leaf.serial_number
            assert not agent.daemon.readiness.problems()


class TestCallers:
    async def test_the_socket_a_caller_came_through_tells_it_from_others(
        self, server: CAServer, tmp_path: Path, clock: FakeClock
    ) -> None:
        sockets = tuple(SocketSettings(tmp_path / f"{name}.sock", name, "0600") for name in ("web", "db"))
        server.register(web=registration("/web", "socket:web"), db=registration("/db", "socket:db"))
        async with RunningAgent(server, tmp_path, clock, socket=sockets) as agent:
            agent.give_token()
            agent.agent.identity.look_again()
            for each in sockets:
                async with SDSStream(each.path, "default") as stream:
                    await stream.receive()
                    assert str(stream.svid().id) == f"spiffe://cluster.local/{each.name}"

    async def test_a_caller_that_no_registration_fits_waits_until_one_does(self, joined: RunningAgent) -> None:
        joined.server.register(web=registration("/web", "socket:elsewhere"))
        await until(lambda: not earned(joined.agent.cache.snapshot.registrations, {MINE}))
        with structlog.testing.capture_logs() as lines:
            async with SDSStream(joined.socket, "default") as stream:
                await until(lambda: any(line.get("missing") == ["socket:elsewhere"] for line in lines))
                joined.server.register(web=registration("/web", "socket:main"))
                await stream.receive()

    async def test_a_socket_for_another_user_refuses_us_at_the_door(
        self, server: CAServer, tmp_path: Path, clock: FakeClock, caplog: pytest.LogCaptureFixture
    ) -> None:
        ours, theirs = tmp_path / "ours.sock", tmp_path / "theirs.sock"
        sockets = (
            SocketSettings(ours, "ours", "0600", (os.getuid(),)),
            SocketSettings(theirs, "theirs", "0600", (os.getuid() + 1,)),
        )
        async with RunningAgent(server, tmp_path, clock, socket=sockets) as agent:
            agent.give_token()
            agent.agent.identity.look_again()
            async with SDSStream(theirs, "default") as stream:
                with pytest.raises(grpc.aio.AioRpcError):
                    await stream.receive()
            refused = [record.getMessage() for record in caplog.records if record.name == "istio_auth.door"]
            assert refused
            assert f"this socket is for uid {os.getuid() + 1}" in refused[0]
            async with SDSStream(ours, "default") as stream:
                await stream.receive()


class TestSecretDiscovery:
    async def test_has_no_answers_without_a_stream(self, joined: RunningAgent) -> None:
        async with grpc.aio.insecure_channel(f"unix:{joined.socket}") as channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await channel.unary_unary(f"{SERVICE}/FetchSecrets", as_they_are, as_they_are)(b"")
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED

    async def test_of_another_type_ends_that_stream_alone(self, joined: RunningAgent) -> None:
        async with SDSStream(joined.socket, "default") as good, SDSStream(joined.socket) as bad:
            await good.receive()
            bad.send(type_url="type.googleapis.com/envoy.config.cluster.v3.Cluster")
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await bad.receive()
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            joined.pass_time(HOUR * 0.6)
            await good.receive()

    async def test_serves_many_clients_of_one_workload_the_same(self, joined: RunningAgent) -> None:
        streams = [SDSStream(joined.socket, "default", "ROOTCA") for _ in range(20)]
        async with asyncio.timeout(60):
            for stream in streams:
                await stream.__aenter__()
            await asyncio.gather(*(stream.receive() for stream in streams))
            assert len({stream.svid().leaf.serial_number for stream in streams}) == 1
            assert len(joined.agent.workloads.discovery.clients()) == 20
            for stream in streams:
                await stream.__aexit__(None, None, None)
            await until(lambda: len(joined.agent.workloads.discovery.clients()) == 0)
