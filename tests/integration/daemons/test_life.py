"""How `istio-ca` and `node-agent` live: start, reload, end, get killed, come back; and what they refuse to start on."""

from __future__ import annotations

import asyncio
import signal
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from istio_auth.proto.node_pb2 import SyncRequest, SyncResponse
from tests.fakes.processes import Machine, Program, fetch, program, status
from tests.fakes.sds_client import SDSStream
from tests.fakes.waiting import until
from tests.integration.daemons.foreign import ForeignClient, Identity, certificates

SYNC = "/istio_auth.node.v1.NodeService/Sync"
REGISTRATION = '[[registration]]\nspiffe_id = "spiffe://cluster.local/{}"\nagents = ["node-1"]\nselectors = ["{}"]\n'


@pytest.fixture
async def machine(tmp_path: Path) -> AsyncIterator[Machine]:
    machine = Machine(tmp_path, ttl="1h")
    async with machine.ca:
        await machine.ca.says("ready")
        yield machine


async def joined(machine: Machine, name: str = "node-1") -> Identity:
    """An agent that has joined, as a foreign client would."""
    fresh, client = Identity(), ForeignClient(machine.ca_port, await machine.roots())
    return fresh.with_chain(await client.create(fresh.csr, token=await machine.invite(name)))


async def client_of(machine: Machine, identity: Identity) -> ForeignClient:
    return ForeignClient(machine.ca_port, await machine.roots(), identity)


@asynccontextmanager
async def synced(client: ForeignClient) -> AsyncIterator[grpc.aio.StreamStreamCall[SyncRequest, SyncResponse]]:
    """An agent's stream, after its first message."""

    async def reports() -> AsyncIterator[SyncRequest]:
        yield SyncRequest()
        await asyncio.Event().wait()

    async with client.channel() as channel:
        open_stream = channel.stream_stream(SYNC, SyncRequest.SerializeToString, SyncResponse.FromString)
        stream = open_stream(reports())
        await news(stream)
        yield stream
        stream.cancel()


async def news(stream: grpc.aio.StreamStreamCall[SyncRequest, SyncResponse]) -> SyncResponse:
    async with asyncio.timeout(60):
        response = await stream.read()
    assert isinstance(response, SyncResponse)
    return response


async def not_started(command: list[object], log: Path) -> tuple[int, str]:
    """The exit code and the last words of a program that refuses to start."""
    async with Program(command, log) as refused:
        code = await refused.ended()
        return code, refused.text()


def replaced(path: Path, content: str) -> None:
    """What an editor does."""
    fresh = path.with_suffix(".new")
    fresh.write_text(content)
    fresh.replace(path)


class TestTheEndOfTheCA:
    async def test_is_not_ready_first_and_then_streams_are_told_to_come_again(self, machine: Machine) -> None:
        client = await client_of(machine, await joined(machine))
        assert (status(machine.ca_health), status(machine.ca_health, "/healthz")) == (200, 200)
        seen: set[int] = set()
        lingering = tls_connection(machine)  # somebody who does not hang up
        async with synced(client) as stream:
            machine.ca.signal(signal.SIGTERM)
            ending = asyncio.create_task(machine.ca.ended())
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await news(stream)
            assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
            while not ending.done():
                seen.add(await asyncio.to_thread(status, machine.ca_health))
        assert await ending == 0  # and was not ended hard, as after ten seconds
        assert 503 in seen
        assert seen <= {503, 0}
        lingering.close()

    async def test_finishes_the_calls_it_has_and_answers_the_others_unavailable(self, machine: Machine) -> None:
        client, csr = await client_of(machine, await joined(machine)), Identity().csr
        already = len(machine.ca.lines())
        calls = [asyncio.create_task(client.create(csr)) for _ in range(60)]
        await machine.ca.says("certificate issued", after=already)
        assert await machine.ca.end() == 0
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        answered = [outcome for outcome in outcomes if isinstance(outcome, list)]
        failed = [outcome for outcome in outcomes if isinstance(outcome, grpc.aio.AioRpcError)]
        assert answered
        assert len(answered) + len(failed) == 60
        assert {each.code() for each in failed} <= {grpc.StatusCode.UNAVAILABLE}
        lines = machine.ca.lines()[already:]
        serials = {int(str(line["serial"]), 16) for line in lines if line["event"] == "certificate issued"}
        assert {certificates(each[0])[0].serial_number for each in answered} <= serials


class TestTheCAKilled:
    async def test_has_the_same_root_and_agents_when_it_is_back(self, machine: Machine) -> None:
        agent = await joined(machine)
        before = await machine.roots()
        await machine.ca.kill()
        already = len(machine.ca.lines())
        await machine.ca.start()
        await machine.ca.says("ready", after=already)
        assert await machine.roots() == before
        reply = await ForeignClient(machine.ca_port, before, agent).create(Identity().csr)
        assert reply[-1].encode() == before


class TestWhatTheCADoesNotStartOn:
    async def test_a_state_folder_that_another_one_holds(self, machine: Machine, tmp_path: Path) -> None:
        second = machine.ca_command("--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0")
        code, words = await not_started(second, tmp_path / "second.log")
        assert code == 1
        assert "ready" not in [line["event"] for line in Program(second, tmp_path / "second.log").lines()]
        assert str(machine.folder / "ca") in words
        assert status(machine.ca_health) == 200
        await machine.ca.kill()
        async with Program(second, tmp_path / "third.log") as heir:
            await heir.says("ready")

    async def test_a_port_that_another_one_has(self, machine: Machine, tmp_path: Path) -> None:
        listen = f"127.0.0.1:{machine.ca_port}"
        elsewhere = ("--state-folder", tmp_path / "elsewhere", "--metrics-listen", "127.0.0.1:0")
        code, words = await not_started(machine.ca_command("--listen", listen, *elsewhere), tmp_path / "second.log")
        assert code in {1, 2}
        assert str(machine.ca_port) in words

    @pytest.mark.parametrize(
        "spoil",
        [
            lambda _: "",
            lambda text: text[: len(text) // 2],
            lambda _: "\x00garbage",
            lambda text: text.replace("cluster.local", "other.local"),
        ],
        ids=["empty", "truncated", "garbage", "foreign"],
    )
    async def test_a_store_that_it_can_not_read(
        self, machine: Machine, tmp_path: Path, spoil: Callable[[str], str]
    ) -> None:
        store = machine.folder / "ca" / "authority.json"
        assert await machine.ca.end() == 0
        good = store.read_text()
        store.write_text(spoil(good))
        code, words = await not_started(machine.ca_command(), tmp_path / "spoilt.log")
        assert code == 2
        assert "authority.json" in words or "other.local" in words
        assert store.read_text() == spoil(good)
        store.write_text(good)
        already = len(machine.ca.lines())
        await machine.ca.start()
        await machine.ca.says("ready", after=already)

    async def test_a_store_that_everybody_can_read(self, machine: Machine, tmp_path: Path) -> None:
        store = machine.folder / "ca" / "authority.json"
        assert await machine.ca.end() == 0
        store.chmod(0o644)
        code, words = await not_started(machine.ca_command(), tmp_path / "spoilt.log")
        assert code == 2
        assert "authority.json" in words
        assert "PRIVATE KEY" not in words

    async def test_a_store_that_it_can_not_look_at(self, machine: Machine, tmp_path: Path) -> None:
        store = machine.folder / "ca" / "authority.json"
        assert await machine.ca.end() == 0
        aside = store.rename(tmp_path / "aside.json")
        store.mkdir()
        code, words = await not_started(machine.ca_command(), tmp_path / "spoilt.log")
        assert code in {1, 2}
        assert "authority.json" in words
        assert not list(store.iterdir())
        store.rmdir()
        aside.rename(store)
        already = len(machine.ca.lines())
        await machine.ca.start()
        await machine.ca.says("ready", after=already)

    async def test_a_store_of_another_trust_domain(self, machine: Machine, tmp_path: Path) -> None:
        assert await machine.ca.end() == 0
        before = (machine.folder / "ca" / "authority.json").read_bytes()
        command = machine.ca_command("--trust-domain", "other.test")
        code, words = await not_started(command, tmp_path / "spoilt.log")
        assert code == 2
        assert "other.test" in words
        assert "cluster.local" in words
        assert (machine.folder / "ca" / "authority.json").read_bytes() == before

    @pytest.mark.parametrize(
        "words",
        [
            ["istio-ca", "--no-such-flag"],
            ["istio-ca", "--default-ttl", "100d"],
            ["istio-ca", "--config", "/nowhere"],
            ["node-agent", "--trust-domain", "Upper.Case"],
            ["node-agent", "--trust-bundle", "/nowhere", "--state-folder", "{}/state", "--name", "n"],
        ],
    )
    async def test_a_configuration_that_makes_no_sense(self, tmp_path: Path, words: list[str]) -> None:
        name, *flags = (word.format(tmp_path) for word in words)
        code, told = await not_started([program(name), *flags], tmp_path / "log")
        assert code == 2
        assert told
        assert "Traceback" not in told


class TestTheRegistrations:
    async def test_are_taken_over_when_they_change_and_a_bad_edit_changes_nothing(self, machine: Machine) -> None:
        agent = await client_of(machine, await joined(machine))
        file, wanted = machine.folder / "registrations.toml", {"ImpersonatedIdentity": "spiffe://cluster.local/db"}
        good = file.read_text() + REGISTRATION.format("db", "unix:uid:7")
        async with synced(agent) as stream:
            replaced(file, good)  # seen by itself
            told = await news(stream)
            assert [each.spiffe_id for each in told.registrations.put] == ["spiffe://cluster.local/db"]
        assert len(await agent.create(Identity().csr, metadata=wanted)) == 2
        refusal = "registrations file refused, the last good one stays"
        for number, bad in enumerate(("[[registration", good + "colour = 1\n", good + good)):
            already = len(machine.ca.lines())
            replaced(file, bad)
            if number:
                machine.ca.signal(signal.SIGHUP)
            await machine.ca.says(refusal, after=already)
            assert len(await agent.create(Identity().csr, metadata=wanted)) == 2
            assert b"istio_auth_ca_registrations_stale 1.0" in fetch(machine.ca_health, "/metrics")
        assert status(machine.ca_health) == 200
        already = len(machine.ca.lines())
        replaced(file, good + REGISTRATION.format("cache", "unix:uid:8"))
        machine.ca.signal(signal.SIGHUP)
        await machine.ca.says("registrations reloaded", after=already)
        assert b"istio_auth_ca_registrations_stale 0.0" in fetch(machine.ca_health, "/metrics")
        assert b"istio_auth_ca_registrations 3.0" in fetch(machine.ca_health, "/metrics")


class TestAnAgentsWayBack:
    async def test_of_the_evicted_is_a_new_invitation_once_all_it_held_has_ended(self, tmp_path: Path) -> None:
        machine = Machine(tmp_path, ttl="6s")
        async with machine.ca:
            await machine.prepare()
            async with machine.agent:
                await machine.agent_is_ready()
                await machine.operator("agent", "evict", "node-1")
                await until(lambda: status(machine.agent_health) == 503)
                await machine.agent.says("the agent's own SVID has lapsed")
                await machine.ca.says_like("evicted")
                already = len(machine.agent.lines())
                await machine.invite(out=machine.token)
                machine.agent.signal(signal.SIGHUP)  # it would look by itself, some time later
                await machine.agent.says("the agent has a new SVID", after=already)
                await machine.agent_is_ready()

    async def test_is_closed_when_the_window_is_over_until_it_is_invited_again(self, tmp_path: Path) -> None:
        machine = Machine(tmp_path, ttl="6s", ca_flags=["--agents-recovery-window", "1s"])
        async with machine.ca:
            await machine.prepare()
            async with machine.agent:
                await machine.agent_is_ready()
                machine.token.unlink()
                await machine.ca.kill()
                await until(lambda: status(machine.agent_health) == 503)
                await machine.agent.says("the agent's own SVID has lapsed")
                over = time.monotonic() + 2
                await until(lambda: time.monotonic() > over)
                already = len(machine.ca.lines())
                await machine.ca.start()
                await machine.ca.says("ready", after=already)
                machine.agent.signal(signal.SIGHUP)
                assert "window" in str((await machine.ca.says("certificate refused", after=already))["reason"])
                already = len(machine.agent.lines())
                await machine.invite(out=machine.token)
                machine.agent.signal(signal.SIGHUP)  # it would look by itself, some time later
                await machine.agent.says("the agent has a new SVID", after=already)


class TestTheServingCertificate:
    async def test_is_renewed_under_callers_that_stay(self, tmp_path: Path) -> None:
        machine = Machine(tmp_path, ttl="8s")
        async with machine.ca:
            await machine.ca.says("ready")
            first = presented(machine)
            await until(lambda: presented(machine) != first)
            await until(lambda: sum(line["event"] == "serving certificate renewed" for line in machine.ca.lines()) > 1)
            assert status(machine.ca_health) == 200
            agent = await joined(machine)
            assert certificates(agent.chain.decode())


class TestTheAgent:
    async def test_does_not_start_on_a_socket_that_another_one_listens_at(
        self, machine: Machine, tmp_path: Path
    ) -> None:
        await machine.prepare()
        async with machine.agent:
            await machine.agent_is_ready()
            text = (machine.folder / "agent.toml").read_text()
            config = tmp_path / "second.toml"
            config.write_text(
                text.replace(f"{machine.folder}/agent", f"{tmp_path}/second", 1).replace(
                    f":{machine.agent_health}", ":0"
                )
            )
            assert str(machine.socket) in config.read_text()
            code, words = await not_started([program("node-agent"), "--config", config], tmp_path / "second.log")
            assert code == 1
            assert str(machine.socket) in words
            async with SDSStream(machine.socket, "default") as stream:
                await stream.receive()
            await machine.agent.kill()
            assert machine.socket.is_socket()  # stale now
            await machine.agent.start()
            await machine.agent_is_ready()

    async def test_ends_its_streams_and_is_not_ready_at_the_end(self, machine: Machine) -> None:
        await machine.prepare()
        async with machine.agent:
            await machine.agent_is_ready()
            assert status(machine.agent_health, "/healthz") == 200
            assert b"istio_auth_agent" in fetch(machine.agent_health, "/metrics")
            async with SDSStream(machine.socket, "default") as stream:
                await stream.receive()
                machine.agent.signal(signal.SIGTERM)
                with pytest.raises(grpc.aio.AioRpcError) as failed:
                    await stream.receive()
                assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
            assert await machine.agent.ended() == 0
        assert not machine.socket.exists()


class TestMetrics:
    async def test_count_what_was_issued_and_refused(self, machine: Machine) -> None:
        client = await client_of(machine, await joined(machine))
        await client.create(Identity().csr)
        with pytest.raises(grpc.aio.AioRpcError):
            await client.create("nonsense")
        told = fetch(machine.ca_health, "/metrics").decode()
        for line in (
            'istio_auth_ca_certificates_issued_total{method="join-token"} 1.0',
            'istio_auth_ca_certificates_issued_total{method="certificate"} 1.0',
            'istio_auth_ca_certificates_refused_total{method="certificate",reason="malformed"} 1.0',
            "citadel_server_csr_count 3.0",
            "citadel_server_success_cert_issuance_count 2.0",
            'citadel_server_csr_sign_err_count{error="CSR_ERROR"} 1.0',
        ):
            assert line in told, line
        assert "istio_auth_ca_serving_certificate_end_timestamp" in told


def tls_connection(machine: Machine) -> ssl.SSLSocket:
    """A caller that has shaken hands, and says nothing more."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    return context.wrap_socket(socket.create_connection(("127.0.0.1", machine.ca_port), timeout=60))


def presented(machine: Machine) -> bytes | None:
    """The certificate that the server shows to whoever comes now."""
    with tls_connection(machine) as connection:
        return connection.getpeercert(binary_form=True)
