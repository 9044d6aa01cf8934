"""The way out: the right server or none, the identity of the moment at each dial, and the reason when there is none."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from istio_auth.authorize import any_id, is_id
from istio_auth.door import Portal
from istio_auth.errors import IstioAuthError, NotAuthenticated, NotAuthorized, NotReady, VerificationError
from istio_auth.sources.memory import MemorySource
from istio_auth.spiffe_id import SpiffeID
from istio_auth.tls import client_context, peer_chain, server_context
from tests.fakes.tcp import closed_port, reset
from tests.fakes.waiting import until
from tests.vectors.x509_svid import BUNDLES, FEDERATED, LOCAL, STRANGER

SERVER = SpiffeID.parse("spiffe://cluster.local/server")


class Server:
    """A TLS server that says who it takes its caller for, then echoes."""

    def __init__(self) -> None:
        self.source = MemorySource.of(LOCAL.svid("/server"), *BUNDLES)
        self.serials: list[int] = []
        self.open = 0
        self.port = 0
        self.silent = False
        self._writers: set[asyncio.StreamWriter] = set()

    @asynccontextmanager
    async def serving(self, host: str = "127.0.0.1") -> AsyncIterator[int]:
        listener = await asyncio.start_server(self._serve, host, 0, ssl=server_context(self.source, any_id()))
        self.port = listener.sockets[0].getsockname()[1]
        yield self.port
        listener.close()
        self.hang_up()
        await until(lambda: not self.open)

    def hang_up(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        self._writers.add(writer)
        self.serials.append(peer_chain(writer)[0].serial_number)
        with contextlib.suppress(OSError):
            if not self.silent:
                writer.write(b"welcome\n")
            while data := await reader.read(1000):
                writer.write(data)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        self._writers.discard(writer)
        self.open -= 1


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server()
    async with server.serving():
        yield server


@pytest.fixture
def source() -> MemorySource:
    """What the portal presents and trusts."""
    return MemorySource.of(LOCAL.svid("/client"), *BUNDLES)


def portal_to(
    port: int, source: MemorySource, *, host: str = "127.0.0.1", patience: timedelta = timedelta(seconds=60)
) -> Portal:
    return Portal(host, port, client_context(source, is_id(SERVER)), patience=patience)


async def dial(portal: Portal) -> bytes:
    """The server's first line through the portal; empty if there was no connection."""
    reader, writer = await asyncio.open_unix_connection(portal.target.removeprefix("unix:"))
    try:
        return await reader.readline()
    except ConnectionError:
        return b""
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def reason(portal: Portal) -> IstioAuthError:
    assert portal.last_error is not None
    return portal.last_error


async def test_bytes_go_both_ways(server: Server, source: MemorySource) -> None:
    async with portal_to(server.port, source) as portal:
        reader, writer = await asyncio.open_unix_connection(portal.target.removeprefix("unix:"))
        writer.write(b"said before the server was reached\n")
        assert await reader.readline() == b"welcome\n"
        assert await reader.readline() == b"said before the server was reached\n"
        block = bytes(range(256)) * 4096
        writer.write(block)
        assert await reader.readexactly(len(block)) == block
        assert portal.last_error is None
        writer.close()
        await until(lambda: not portal.passages)
        await until(lambda: not server.open)


async def test_its_folder_is_private_and_goes_with_it(server: Server, source: MemorySource) -> None:
    async with portal_to(server.port, source) as portal:
        path = Path(portal.target.removeprefix("unix:"))
        modes = [stat.S_IMODE(place.stat().st_mode) for place in (path.parent, path)]
        assert modes == [0o700, 0o600]
    assert not path.parent.exists()


@pytest.mark.parametrize(("host", "authority"), [("ca.test", "ca.test:15012"), ("::1", "[::1]:15012")])
async def test_the_servers_name_goes_with_the_calls(source: MemorySource, host: str, authority: str) -> None:
    async with portal_to(15012, source, host=host) as portal:
        assert portal.authority == authority


async def test_ipv6_is_dialled(source: MemorySource) -> None:
    server = Server()
    async with server.serving("::1") as port, portal_to(port, source, host="::1") as portal:
        assert await dial(portal) == b"welcome\n"


async def test_a_server_of_another_spiffe_id_is_not_the_right_one(server: Server, source: MemorySource) -> None:
    """Its certificate is faultless otherwise."""
    async with portal_to(server.port, source) as portal:
        for wrong in (LOCAL.svid("/other"), FEDERATED.svid("/server")):
            server.source.replace(MemorySource.of(wrong, *BUNDLES).x509_context())
            assert not await dial(portal)
            assert isinstance(reason(portal), NotAuthorized)
            assert str(wrong.id) in str(reason(portal))
        server.source.replace(MemorySource.of(STRANGER.svid("/server"), *BUNDLES).x509_context())
        assert not await dial(portal)
        assert isinstance(reason(portal), VerificationError)
        server.source.replace(MemorySource.of(LOCAL.svid("/server"), *BUNDLES).x509_context())
        assert await dial(portal)
        assert portal.last_error is None
    assert len(server.serials) == 1


async def test_each_connection_shows_the_svid_of_its_moment(server: Server, source: MemorySource) -> None:
    async with portal_to(server.port, source) as portal:
        shown = []
        for _ in range(3):
            source.replace(MemorySource.of(LOCAL.svid("/client"), *BUNDLES).x509_context())
            shown.append(source.svid().leaf.serial_number)
            assert await dial(portal)
        assert server.serials == shown


async def test_a_server_that_refuses_us_is_told_apart(server: Server, source: MemorySource) -> None:
    """The alert comes after our own handshake was over."""
    async with portal_to(server.port, source) as portal:
        source.replace(MemorySource.of(STRANGER.svid("/client"), *BUNDLES).x509_context())
        assert not await dial(portal)
        await until(lambda: portal.last_error)
        assert isinstance(reason(portal), NotAuthenticated | NotReady)
        source.replace(MemorySource.of(LOCAL.svid("/client"), *BUNDLES).x509_context())
        assert await dial(portal)
        assert portal.last_error is None


async def test_an_alert_is_told_in_its_words(source: MemorySource) -> None:
    """A blocking server's OpenSSL sends one; it knows no roots."""
    context = server_context(MemorySource.of(LOCAL.svid("/server"), FEDERATED.bundle()), any_id())
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(ssl.SSLError):
                context.wrap_socket(connection, server_side=True)

        async with portal_to(listener.getsockname()[1], source) as portal:
            serving = asyncio.create_task(asyncio.to_thread(serve))
            assert not await dial(portal)
            await serving
            await until(lambda: portal.last_error)
            assert "the peer refused the TLS handshake: tlsv1 alert unknown ca" in str(reason(portal))


async def test_without_an_identity_yet_it_says_so(server: Server) -> None:
    source = MemorySource()
    async with portal_to(server.port, source) as portal:
        assert not await dial(portal)
        assert isinstance(reason(portal), NotReady)
        assert "no SVID has arrived" in str(reason(portal))
        source.replace(MemorySource.of(LOCAL.svid("/client"), *BUNDLES).x509_context())
        assert await dial(portal)


async def test_nobody_there_is_told_with_the_address(server: Server, source: MemorySource) -> None:
    async with portal_to(port := closed_port(), source) as portal:
        assert not await dial(portal)
        assert isinstance(reason(portal), NotReady)
        assert f"127.0.0.1:{port} can not be reached" in str(reason(portal))
        portal.port = server.port
        assert await dial(portal)
        assert portal.last_error is None


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a..b", "x" * 70, "\0"])
async def test_a_name_that_can_not_be_resolved_is_told(source: MemorySource, host: str) -> None:
    async with portal_to(1, source, host=host) as portal:
        assert not await dial(portal)
        assert isinstance(reason(portal), NotReady)
        assert "can not be reached" in str(reason(portal))
        await until(lambda: not portal.passages)


@contextlib.contextmanager
def silent_listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(60)
        yield listener


async def test_a_server_that_never_answers_ends_the_patience(source: MemorySource) -> None:
    with silent_listener() as listener:
        port = listener.getsockname()[1]
        async with portal_to(port, source, patience=timedelta(seconds=0.1)) as portal:
            assert not await dial(portal)
            assert isinstance(reason(portal), NotReady)
            assert f"127.0.0.1:{port} did not answer within 0.1 s" in str(reason(portal))
            connection, _ = listener.accept()
            with connection:
                assert await asyncio.to_thread(ended, connection)


def ended(connection: socket.socket) -> bool:
    """Whether the other end closes, whatever it says before."""
    connection.settimeout(60)
    with contextlib.suppress(ConnectionResetError):
        while connection.recv(65536):
            pass
    return True


async def test_closing_takes_dials_with_it(source: MemorySource) -> None:
    """The server must not be left with a connection that nobody will ever use."""
    with silent_listener() as listener:
        portal = portal_to(listener.getsockname()[1], source)
        await portal.start()
        dialling = asyncio.create_task(dial(portal))
        connection, _ = await asyncio.to_thread(listener.accept)
        connection.settimeout(60)
        assert await asyncio.to_thread(connection.recv, 1)  # it is in the handshake
        await portal.close()
        assert await asyncio.to_thread(ended, connection)
        connection.close()
        assert not await dialling
        await until(lambda: not portal.passages)
        assert portal.last_error is None


@pytest.mark.parametrize("end", [reset, socket.socket.close])
async def test_a_server_that_leaves_in_the_handshake_is_told(source: MemorySource, end: object) -> None:
    with silent_listener() as listener:
        async with portal_to(listener.getsockname()[1], source) as portal:
            dialling = asyncio.create_task(dial(portal))
            connection, _ = await asyncio.to_thread(listener.accept)
            await asyncio.to_thread(connection.recv, 1)
            end(connection)  # type: ignore[operator]  # one of two functions
            assert not await dialling
            assert "closed in the middle of the TLS handshake" in str(reason(portal))


async def test_a_server_without_tls_is_told(source: MemorySource) -> None:
    with silent_listener() as listener:
        async with portal_to(listener.getsockname()[1], source) as portal:
            dialling = asyncio.create_task(dial(portal))
            connection, _ = await asyncio.to_thread(listener.accept)
            connection.sendall(b"220 mail.test ESMTP ready for duty\r\n")
            assert not await dialling
            assert "no TLS handshake: wrong version number" in str(reason(portal))
            connection.close()


async def test_a_server_that_closes_without_a_word_is_told(server: Server, source: MemorySource) -> None:
    server.silent = True
    async with portal_to(server.port, source) as portal:
        dialling = asyncio.create_task(dial(portal))
        await until(lambda: server.open)
        server.hang_up()
        assert not await dialling
        await until(lambda: portal.last_error)
        assert "closed the connection without a word" in str(reason(portal))


async def test_a_caller_that_leaves_before_the_server_speaks_is_no_fault_of_the_server(
    server: Server, source: MemorySource
) -> None:
    server.silent = True
    async with portal_to(server.port, source) as portal:
        _, writer = await asyncio.open_unix_connection(portal.target.removeprefix("unix:"))
        await until(lambda: server.open)
        writer.close()
        await until(lambda: not server.open)
        await until(lambda: not portal.passages)
        assert portal.last_error is None


async def test_closing_ends_every_connection(server: Server, source: MemorySource) -> None:
    portal = portal_to(server.port, source)
    await portal.start()
    reader, writer = await asyncio.open_unix_connection(portal.target.removeprefix("unix:"))
    assert await reader.readline()
    await portal.close()
    with contextlib.suppress(ConnectionError):
        assert await reader.read() == b""
    await until(lambda: not server.open)
    assert portal.last_error is None
    writer.close()


async def test_a_connection_outlives_the_rotation_of_its_svid(server: Server, source: MemorySource) -> None:
    async with portal_to(server.port, source) as portal:
        reader, writer = await asyncio.open_unix_connection(portal.target.removeprefix("unix:"))
        await reader.readline()
        source.replace(MemorySource.of(LOCAL.svid("/client"), *BUNDLES).x509_context())
        writer.write(b"still here\n")
        assert await reader.readline() == b"still here\n"
        writer.close()


class TestSeveralAddresses:
    """A name with several addresses: each is tried, and one that hangs holds nobody up for long."""

    @pytest.fixture(autouse=True)
    def names(self, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
        """What every name resolves to."""
        found: list[tuple[str, int]] = []

        async def getaddrinfo(*_args: object, **_kwargs: object) -> list[object]:
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in found]

        monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", lambda _loop, *args, **kw: getaddrinfo(*args, **kw))
        return found

    async def test_are_tried_in_turn(self, server: Server, source: MemorySource, names: list[tuple[str, int]]) -> None:
        names += [("127.0.0.2", closed_port()), ("127.0.0.3", closed_port()), ("127.0.0.1", server.port)]
        async with portal_to(server.port, source, host="ca.test") as portal:
            assert await dial(portal) == b"welcome\n"

    async def test_do_not_wait_for_one_that_hangs(
        self, server: Server, source: MemorySource, names: list[tuple[str, int]]
    ) -> None:
        with socket.create_server(("127.0.0.2", 0), backlog=0) as full, contextlib.ExitStack() as queue:
            for _ in range(3):
                waiting = queue.enter_context(socket.socket())
                waiting.setblocking(False)
                waiting.connect_ex(full.getsockname())
            names += [full.getsockname(), ("127.0.0.1", server.port)]
            async with portal_to(server.port, source, host="ca.test") as portal:
                async with asyncio.timeout(30):  # which is less than the portal's whole patience
                    assert await dial(portal) == b"welcome\n"

    async def test_are_all_told_when_none_answers(self, source: MemorySource, names: list[tuple[str, int]]) -> None:
        names += [("127.0.0.2", closed_port()), ("127.0.0.3", closed_port())]
        async with portal_to(1, source, host="ca.test") as portal:
            assert not await dial(portal)
            assert "ca.test:1 can not be reached" in str(reason(portal))


@pytest.mark.parametrize("turns", range(4))
async def test_a_connection_that_arrives_while_it_closes_is_dialled_no_further(
    source: MemorySource, turns: int
) -> None:
    """The loop may have taken it from the socket already."""
    with silent_listener() as listener, socket.socket(socket.AF_UNIX) as late:
        portal = portal_to(listener.getsockname()[1], source)
        await portal.start()
        late.connect(portal.target.removeprefix("unix:"))
        for _ in range(turns):
            await asyncio.sleep(0)
        await portal.close()
        assert await asyncio.to_thread(ended, late)
        assert not portal.passages
        listener.settimeout(0.05)
        with contextlib.suppress(TimeoutError):
            dialled, _ = listener.accept()  # before the portal was closed
            assert await asyncio.to_thread(ended, dialled)
            dialled.close()
