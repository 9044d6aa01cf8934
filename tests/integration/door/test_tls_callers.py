"""Callers over TLS: proven, named and counted before the private server sees a byte, or refused with the reason."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest

from istio_auth.authorize import any_id, is_id
from istio_auth.door import Door, DoorLimits, TLSCaller
from istio_auth.errors import Exhausted, Fault, IstioAuthError, NotAuthenticated, NotAuthorized, NotReady
from istio_auth.errors import VerificationError as Refused
from istio_auth.sources.memory import MemorySource
from istio_auth.spiffe_id import SpiffeID
from istio_auth.tls import client_context, server_context
from tests.fakes.private_server import PrivateServer
from tests.fakes.tcp import reset
from tests.fakes.tls import stranger
from tests.fakes.waiting import until
from tests.vectors.x509_svid import ALL, BUNDLES, FEDERATED, KEY, LOCAL, Chain

OURS = MemorySource.of(LOCAL.svid("/server"), *BUNDLES)
WEB = SpiffeID.parse("spiffe://cluster.local/ns/default/sa/web")
Refusals = list[tuple[str, IstioAuthError]]


@asynccontextmanager
async def dialled(
    port: int, context: ssl.SSLContext
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="door.test")
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def presenting(chain: Chain = ()) -> ssl.SSLContext:
    return stranger(server_side=False, chain=chain, key=KEY)


async def greeting(port: int, context: ssl.SSLContext) -> str:
    """What the private server calls us; empty if the door did not let us in."""
    try:
        async with dialled(port, context) as (reader, _):
            return (await reader.readline()).decode().strip()
    except OSError:
        return ""


async def listening(door: Door, *, context: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> int:
    return (await door.listen_tls(host, 0, context or server_context(OURS, any_id())))[1]


async def test_a_caller_is_known_by_its_chain(door: Door, server: PrivateServer, refusals: Refusals) -> None:
    port = await listening(door)
    chain = LOCAL.chain(key=KEY)
    async with dialled(port, presenting(chain)) as (reader, writer):
        name = (await reader.readline()).decode().strip()
        (caller,) = server.callers
        assert isinstance(caller, TLSCaller)
        assert caller.spiffe_id == WEB
        assert caller.chain[:1] == chain
        assert caller.address == "{}:{}".format(*writer.get_extra_info("sockname"))
        assert name == str(caller) == f"{WEB} at {caller.address}"
        assert (door.connections, door.accepted, door.refused) == (1, 1, 0)
        writer.write(b"hello\n")
        assert await reader.readline() == b"hello\n"
    await until(lambda: not door.connections)
    await until(lambda: not server.open)
    assert not refusals


@pytest.mark.parametrize(
    "name", ["local-name-signed-by-federated-ca", "expired", "two-uri-names", "no-digital-signature"]
)
async def test_a_caller_that_proves_nothing_is_refused_with_the_reason(
    door: Door, server: PrivateServer, refusals: Refusals, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    port = await listening(door)
    assert not await greeting(port, presenting(ALL[name].wrong))
    await until(lambda: refusals)
    ((listener, reason),) = refusals
    assert listener == "tls"
    assert isinstance(reason, Refused)
    assert reason.fault in {ALL[name].fault, Fault.EXTENDED_KEY_USAGE}
    (line,) = [record for record in caplog.records if record.name == "istio_auth.door"]
    assert str(reason) in line.getMessage()
    assert line.__dict__["fault"] == reason.fault.value
    await until(lambda: not door.connections)
    assert (door.accepted, door.refused, server.callers) == (0, 1, [])
    assert str(WEB) in await greeting(port, presenting(ALL[name].mended))
    assert len(refusals) == 1


async def test_a_caller_that_is_not_welcome_is_refused_by_name(
    door: Door, server: PrivateServer, refusals: Refusals
) -> None:
    port = await listening(door, context=server_context(OURS, is_id(WEB)))
    assert not await greeting(port, presenting(LOCAL.chain(LOCAL.leaf("/other"), key=KEY)))
    await until(lambda: refusals)
    assert isinstance(refusals[0][1], NotAuthorized)
    assert "spiffe://cluster.local/other" in str(refusals[0][1])
    assert str(WEB) in await greeting(port, presenting(LOCAL.chain(key=KEY)))


async def test_a_caller_without_certificate_is_nobody_or_refused(
    door: Door, server: PrivateServer, refusals: Refusals
) -> None:
    open_to_all = await listening(door, context=server_context(OURS, any_id(), require_client_certificate=False))
    assert (await greeting(open_to_all, presenting())).startswith("a caller without certificate at 127.0.0.1:")
    caller = server.callers[0]
    assert isinstance(caller, TLSCaller)
    assert (caller.chain, caller.spiffe_id) == ((), None)
    closed = await listening(door)
    assert not await greeting(closed, presenting())
    await until(lambda: refusals)
    assert isinstance(refusals[0][1], Refused)
    assert refusals[0][1].fault is Fault.EMPTY


async def test_a_caller_that_does_not_like_us_is_told_apart(door: Door, refusals: Refusals) -> None:
    """A client whose own OpenSSL refuses our root sends an alert."""
    port = await listening(door)
    picky = presenting(LOCAL.chain(key=KEY))
    picky.verify_mode = ssl.CERT_REQUIRED

    def dial() -> None:  # asyncio's client would keep its alert to itself
        with socket.create_connection(("127.0.0.1", port), timeout=60) as plain:
            picky.wrap_socket(plain)

    with pytest.raises(ssl.SSLCertVerificationError):
        await asyncio.to_thread(dial)
    await until(lambda: refusals)
    assert "the peer refused the TLS handshake" in str(refusals[0][1])


async def test_a_caller_that_openssl_refuses_is_told_by_an_alert(door: Door, refusals: Refusals) -> None:
    port = await listening(door)
    stranger_of_our_name = presenting(ALL["stranger-with-the-right-names"].wrong)

    def dial() -> bytes:
        plain = socket.create_connection(("127.0.0.1", port), timeout=60)
        with plain, stranger_of_our_name.wrap_socket(plain) as tls:
            return tls.recv(1)

    with pytest.raises(ssl.SSLError, match="UNKNOWN_CA"):
        await asyncio.to_thread(dial)
    await until(lambda: refusals)
    assert len(refusals) == 1


async def test_a_server_that_has_no_svid_yet_says_so(door: Door, server: PrivateServer, refusals: Refusals) -> None:
    source = MemorySource()
    port = await listening(door, context=server_context(source, any_id()))
    assert not await greeting(port, presenting(LOCAL.chain(key=KEY)))
    await until(lambda: refusals)
    assert isinstance(refusals[0][1], NotReady)
    source.replace(OURS.x509_context())
    assert str(WEB) in await greeting(port, presenting(LOCAL.chain(key=KEY)))


@pytest.mark.parametrize(
    "garbage",
    [b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", b"\0" * 4000, b"\x16\x03\x01\xff\xff" + b"x" * 70000, b"SSH-2.0-x\r\n"],
)
async def test_garbage_is_refused_and_leaves_nothing(
    door: Door, server: PrivateServer, refusals: Refusals, garbage: bytes
) -> None:
    port = await listening(door)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(garbage)
    with contextlib.suppress(ConnectionError):
        assert len(await reader.read()) <= 7  # an alert
    writer.close()
    await until(lambda: refusals)
    assert isinstance(refusals[0][1], NotAuthenticated)
    assert "no TLS handshake" in str(refusals[0][1])
    await until(lambda: not door.connections)
    assert str(WEB) in await greeting(port, presenting(LOCAL.chain(key=KEY)))


async def test_a_handshake_that_takes_too_long_is_ended(server: PrivateServer, refusals: Refusals) -> None:
    async with (
        Door(
            limits=DoorLimits(handshake=timedelta(seconds=0.5)), on_refused=lambda *refusal: refusals.append(refusal)
        ) as door,
        PrivateServer(door) as behind,
    ):
        port = await listening(door)
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        with contextlib.suppress(ssl.SSLWantReadError):
            presenting(LOCAL.chain(key=KEY)).wrap_bio(incoming, outgoing).do_handshake()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(outgoing.read()[:-10])
        assert await reader.read() == b""
        assert [str(reason) for _, reason in refusals] == ["no TLS handshake within 0.5 s"]
        writer.close()
        # One that never says a word is ended too, and is no refusal: port checks do that.
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert await reader.read() == b""
        writer.close()
        await until(lambda: not door.connections)
        assert door.refused == 1
        # Whoever is in stays in for longer than that.
        async with contextlib.AsyncExitStack() as here:
            reader, writer = await let_in(port, here)
            reached = asyncio.get_running_loop().time() + 0.6
            await until(lambda: asyncio.get_running_loop().time() > reached)
            writer.write(b"still here\n")
            assert await reader.readline() == b"still here\n"
        assert len(behind.callers) == 1


async def let_in(port: int, stack: contextlib.AsyncExitStack) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A caller that was in time, as on a busy machine not each one is."""
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(OSError):
                reader, writer = await stack.enter_async_context(dialled(port, presenting(LOCAL.chain(key=KEY))))
                if await reader.readline():
                    return reader, writer


async def test_one_address_has_a_limit_and_all_together_have_one(refusals: Refusals) -> None:
    limits = DoorLimits(connections=3, per_caller=2)
    async with (
        Door(limits=limits, on_refused=lambda *refusal: refusals.append(refusal)) as door,
        PrivateServer(door),
        contextlib.AsyncExitStack() as here,
    ):
        port = await listening(door, host="0.0.0.0")

        async def visit(source: str, stack: contextlib.AsyncExitStack = here) -> bytes:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
            stack.callback(writer.close)
            with contextlib.suppress(OSError):
                await writer.start_tls(presenting(LOCAL.chain(key=KEY)), server_hostname="door.test")
                return await reader.readline()
            return b""

        leaving = await here.enter_async_context(contextlib.AsyncExitStack())
        assert await visit("127.0.0.1")
        assert await visit("127.0.0.1", leaving)
        assert not await visit("127.0.0.1")
        assert "2 connections of 127.0.0.1 are open" in str(refusals[-1][1])
        assert await visit("127.0.0.2")
        assert not await visit("127.0.0.3")
        assert "3 connections are open" in str(refusals[-1][1])
        assert all(isinstance(reason, Exhausted) for _, reason in refusals)
        await leaving.aclose()
        await until(lambda: door.connections == 2)
        assert await visit("127.0.0.3")
        assert len(refusals) == 2


async def test_a_handshake_under_way_counts(refusals: Refusals) -> None:
    async with Door(limits=DoorLimits(per_caller=1), on_refused=lambda *refusal: refusals.append(refusal)) as door:
        port = await listening(door)
        _, silent = await asyncio.open_connection("127.0.0.1", port)
        await until(lambda: door.connections == 1)
        assert not await greeting(port, presenting(LOCAL.chain(key=KEY)))
        assert isinstance(refusals[0][1], Exhausted)
        silent.close()
        await until(lambda: not door.connections)


@pytest.mark.parametrize("host", ["::1", "127.0.0.1"])
async def test_addresses_are_written_as_usual(door: Door, server: PrivateServer, host: str) -> None:
    port = await listening(door, host=host)
    reader, writer = await asyncio.open_connection(
        host, port, ssl=presenting(LOCAL.chain(key=KEY)), server_hostname="door.test"
    )
    await reader.readline()
    ours = writer.get_extra_info("sockname")[1]
    assert str(server.callers[0]).endswith(f" at [::1]:{ours}" if ":" in host else f" at 127.0.0.1:{ours}")
    writer.close()
    await writer.wait_closed()


async def test_a_caller_that_is_gone_before_it_was_seen_is_no_event(
    door: Door, server: PrivateServer, refusals: Refusals
) -> None:
    port = await listening(door)
    gone = socket.create_connection(("127.0.0.1", port))
    reset(gone)  # before the loop has accepted it: the kernel forgets its address
    assert str(WEB) in await greeting(port, presenting(LOCAL.chain(key=KEY)))
    await until(lambda: not door.connections)
    assert not refusals


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_caller_that_leaves_in_the_handshake_is_told_of(
    door: Door, server: PrivateServer, refusals: Refusals, how: str
) -> None:
    port = await listening(door)
    with socket.create_connection(("127.0.0.1", port)) as leaving:
        leaving.sendall(b"\x16\x03\x01")
        await until(lambda: door.connections == 1)
        reset(leaving) if how == "reset" else leaving.close()
        await until(lambda: refusals)
    assert "closed in the middle" in str(refusals[0][1])
    await until(lambda: not door.connections)


async def test_a_private_server_that_is_not_there_turns_callers_away(door: Door, refusals: Refusals) -> None:
    port = await listening(door)
    assert not await greeting(port, presenting(LOCAL.chain(key=KEY)))
    await until(lambda: refusals)
    assert isinstance(refusals[0][1], NotReady)
    await until(lambda: not door.connections)
    assert door.accepted == 0
    async with PrivateServer(door):
        assert str(WEB) in await greeting(port, presenting(LOCAL.chain(key=KEY)))


async def test_a_private_server_with_a_full_queue_is_waited_for(
    door: Door, refusals: Refusals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("istio_auth.door.visit._TRIES", 1000)
    port = await listening(door)
    with socket.socket(socket.AF_UNIX) as private, contextlib.ExitStack() as queue:
        private.bind(door.target.removeprefix("unix:"))
        private.listen(0)
        for _ in range(2):
            waiting = queue.enter_context(socket.socket(socket.AF_UNIX))
            waiting.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                waiting.connect(door.target.removeprefix("unix:"))
        async with dialled(port, presenting(LOCAL.chain(key=KEY))) as (reader, _):
            await until(lambda: door.connections == 1)
            assert not door.accepted
            private.accept()[0].close()
            await until(lambda: door.accepted == 1)
            connection, _name = private.accept()
            connection.sendall(b"welcome\n")
            assert await reader.readline() == b"welcome\n"
            connection.close()
    assert not refusals


async def test_the_snapshot_of_the_moment_decides_at_one_listener(
    door: Door, server: PrivateServer, refusals: Refusals
) -> None:
    source = MemorySource.of(LOCAL.svid("/server"), LOCAL.bundle())
    port = await listening(door, context=server_context(source, any_id()))
    visitor = presenting(FEDERATED.chain(key=KEY))
    assert not await greeting(port, visitor)
    await until(lambda: refusals)
    assert isinstance(refusals[0][1], Refused)
    source.replace(OURS.x509_context())
    assert "spiffe://partner.test" in await greeting(port, visitor)


async def test_both_ends_ours_know_each_other(door: Door, server: PrivateServer) -> None:
    port = await listening(door)
    theirs = MemorySource.of(LOCAL.svid("/client"), *BUNDLES)
    server_name = SpiffeID.parse("spiffe://cluster.local/server")
    assert "spiffe://cluster.local/client" in await greeting(port, client_context(theirs, is_id(server_name)))


@pytest.mark.parametrize("turns", range(4))
async def test_a_caller_that_arrives_while_the_door_closes_is_sent_away(turns: int) -> None:
    """The loop may have taken its connection from the socket already."""
    door = Door()
    port = await listening(door)
    with socket.create_connection(("127.0.0.1", port), timeout=60) as late:
        for _ in range(turns):
            await asyncio.sleep(0)
        await door.close(timedelta())
        with contextlib.suppress(ConnectionError):
            assert not await asyncio.to_thread(late.recv, 1)
    await until(lambda: not door.connections)
