"""Chains that are wrong in one way, over real sockets: blocking and in asyncio, at either end.

Every vector is tried in memory as well (`tests/unit/tls/test_verdict.py`), and each alone against the verdict
(`tests/unit/test_verify.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from istio_auth.authorize import Authorizer, any_id, is_id
from istio_auth.errors import Code, VerificationError
from istio_auth.peer import PeerRefused
from istio_auth.sources.memory import MemorySource
from istio_auth.spiffe_id import SpiffeID
from istio_auth.tls import client_context, peer_id, server_context
from tests.fakes.clock import FakeClock
from tests.fakes.tcp import pair
from tests.fakes.tls import stranger
from tests.vectors.x509_svid import ALL, BUNDLES, KEY, LOCAL, NOW, Chain

ANYBODY = any_id()
CLOCK = FakeClock(NOW)
OURS = MemorySource.of(LOCAL.svid("/ours"), *BUNDLES)
WEB = SpiffeID.parse("spiffe://cluster.local/ns/default/sa/web")
WORD = b"hello"
NAMES = [
    "expired",
    "not-yet-valid",
    "self-issued",
    "leaf-is-a-ca",
    "leaf-signs-certificates",
    "two-uri-names",
    "no-uri-name",
    "https-uri",
    "id-without-path",
    "federated-name-signed-by-local-ca",
    "local-name-signed-by-federated-ca",
    "a-hundred-certificates",
    "stranger-with-the-right-names",
]
SIDES = ["client", "server"]


def behave(plain: socket.socket, chain: Chain, *, server_side: bool) -> bytes:
    """A peer without rules: says its word, and tells what it heard."""
    context = stranger(server_side=server_side, chain=chain, key=KEY)
    with contextlib.suppress(OSError), context.wrap_socket(plain, server_side=server_side) as peer:
        peer.sendall(WORD)
        return peer.recv(100)
    return b""


def blocking(side: str, chain: Chain, authorize: Authorizer = ANYBODY) -> tuple[SpiffeID, bytes]:
    """Whom ours met on this side, and what it was told."""
    with pair() as (dialled, accepted), ThreadPoolExecutor(1) as pool:
        plain, theirs = (dialled, accepted) if side == "client" else (accepted, dialled)
        heard = pool.submit(behave, theirs, chain, server_side=side == "client")
        make = client_context if side == "client" else server_context
        context = make(OURS, authorize, clock=CLOCK)
        try:
            with context.wrap_socket(plain, server_side=side == "server") as ours:
                told = ours.recv(100)
                ours.sendall(b"secret")
                met = peer_id(ours)
        except PeerRefused:
            plain.close()
            assert heard.result(60) == b""
            raise
        assert heard.result(60) == b"secret"
        return met, told


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("side", SIDES)
def test_blocking_sockets_refuse_each_fault_and_take_the_chain_without_it(side: str, name: str) -> None:
    vector = ALL[name]
    with pytest.raises(PeerRefused) as caught:
        blocking(side, vector.wrong)
    assert isinstance(caught.value.reason_error, VerificationError)
    assert caught.value.reason_error.fault is vector.fault
    met, told = blocking(side, vector.mended)
    assert met.path == "/ns/default/sa/web"
    assert told == WORD


async def dial_stranger(chain: Chain) -> tuple[SpiffeID, bytes]:
    """Whom a client of ours met, and what it was told."""
    heard: list[bytes] = []
    done = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            writer.write(WORD)
            heard.append(await reader.read(100))
        writer.transport.abort()
        done.set()

    context = client_context(OURS, ANYBODY, clock=CLOCK)
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=stranger(server_side=True, chain=chain, key=KEY))
    async with server:
        address = server.sockets[0].getsockname()
        try:
            reader, writer = await asyncio.open_connection(*address, ssl=context)
        except PeerRefused:
            assert not any(heard)
            raise
        found = peer_id(writer), await reader.read(100)
        writer.write(b"secret")
        await done.wait()
        writer.transport.abort()
    assert heard == [b"secret"]
    return found


@pytest.mark.parametrize("name", NAMES)
async def test_a_client_in_asyncio_refuses_each_fault_and_takes_the_chain_without_it(name: str) -> None:
    vector = ALL[name]
    with pytest.raises(PeerRefused) as caught:
        await dial_stranger(vector.wrong)
    assert isinstance(caught.value.reason_error, VerificationError)
    assert caught.value.reason_error.fault is vector.fault
    met, told = await dial_stranger(vector.mended)
    assert met.path == "/ns/default/sa/web"
    assert told == WORD


class Greeter:
    """A server of ours in asyncio, which greets whom it is handed."""

    def __init__(self) -> None:
        self.handed: list[SpiffeID] = []
        self.authorize: Authorizer = ANYBODY
        self.context = server_context(OURS, lambda peer: self.authorize(peer), clock=CLOCK)  # noqa: PLW0108  # it changes

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.handed.append(peer_id(writer))
        with contextlib.suppress(OSError):
            writer.write(b"secret")
            await reader.read(100)
        writer.transport.abort()

    async def greets(self, *chains: Chain) -> list[bytes]:
        """What a stranger with each of these chains is told, by one and the same listener."""
        async with await asyncio.start_server(self.serve, "127.0.0.1", 0, ssl=self.context) as server:
            host, port = server.sockets[0].getsockname()
            return [await self._told(host, port, chain) for chain in chains]

    async def _told(self, host: str, port: int, chain: Chain) -> bytes:
        context = stranger(server_side=False, chain=chain, key=KEY)
        try:
            reader, writer = await asyncio.open_connection(host, port, ssl=context)
        except OSError:
            return b""
        try:
            writer.write(WORD)
            return await reader.read(100)
        except OSError:
            return b""
        finally:
            writer.transport.abort()


@pytest.mark.parametrize("name", NAMES)
async def test_a_server_in_asyncio_refuses_each_fault_and_goes_on_serving(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    vector, greeter = ALL[name], Greeter()
    caplog.set_level(logging.DEBUG, "istio_auth.tls")
    assert await greeter.greets(vector.wrong, vector.mended, vector.wrong) == [b"", b"secret", b""]
    assert [peer.path for peer in greeter.handed] == ["/ns/default/sa/web"]
    refusals = [record.getMessage() for record in caplog.records if "refused" in record.getMessage()]
    assert len(refusals) == 2
    assert all(f"TLS peer refused: {vector.fault.value}" in refusal for refusal in refusals)


class TestAnAuthorizerThatRaises:
    """Whatever it raises, nobody gets in, and the server goes on."""

    @staticmethod
    def broken(_peer: SpiffeID) -> None:
        raise KeyError("a bug of the application")

    @pytest.mark.parametrize("side", SIDES)
    def test_over_blocking_sockets(self, side: str) -> None:
        chain = LOCAL.chain(key=KEY)
        with pytest.raises(PeerRefused) as caught:
            blocking(side, chain, self.broken)
        assert caught.value.reason_error.code is Code.INTERNAL
        assert "a bug of the application" in str(caught.value)
        assert isinstance(caught.value.__cause__, KeyError)  # for whoever looks for the bug
        assert blocking(side, chain) == (WEB, WORD)

    async def test_in_asyncio(self, caplog: pytest.LogCaptureFixture) -> None:
        greeter, chain = Greeter(), LOCAL.chain(key=KEY)
        caplog.set_level(logging.DEBUG, "istio_auth.tls")
        greeter.authorize = self.broken
        assert await greeter.greets(chain) == [b""]
        assert "a bug of the application" in caplog.text
        greeter.authorize = is_id(WEB)
        assert await greeter.greets(chain) == [b"secret"]
        assert greeter.handed == [WEB]
