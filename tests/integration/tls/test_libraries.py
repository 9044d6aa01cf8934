"""Our contexts in the hands of asyncio, http.server, http.client and aiohttp, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import http.server
import socket
import socketserver
import ssl
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import aiohttp
import httpx
import pytest
from aiohttp import web

from istio_auth.authorize import any_id, is_id
from istio_auth.bundle import BundleSet
from istio_auth.errors import NotAuthenticated, NotAuthorized, VerificationError
from istio_auth.peer import PeerRefused
from istio_auth.pem import write_der
from istio_auth.sources.memory import MemorySource
from istio_auth.spiffe_id import SpiffeID
from istio_auth.tls import client_context, peer_chain, peer_id, server_context
from istio_auth.x509_source import X509Context
from tests.fakes.tls import stranger
from tests.fakes.waiting import until
from tests.vectors.x509_svid import BUNDLES, FEDERATED, KEY, LOCAL, STRANGER

SERVER = SpiffeID.parse("spiffe://cluster.local/server")
CLIENT = SpiffeID.parse("spiffe://cluster.local/client")


@pytest.fixture
def ours() -> MemorySource:
    """What the server holds."""
    return MemorySource.of(LOCAL.svid("/server"), *BUNDLES)


@pytest.fixture
def theirs() -> MemorySource:
    """What the client holds."""
    return MemorySource.of(LOCAL.svid("/client"), *BUNDLES)


def forged() -> X509Context:
    """Our trust domain's name, by the CA of another trust domain that is trusted too."""
    return X509Context((FEDERATED.svid(uris=[str(CLIENT)]),), BUNDLES)


class AsyncioServer:
    """Counts whom it was handed, and says who they are."""

    def __init__(self) -> None:
        self.handled: list[SpiffeID] = []
        self.failures: list[BaseException] = []
        self.writers: set[asyncio.StreamWriter] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.add(writer)
        self.handled.append(peer_id(writer))
        writer.write(f"{peer_id(writer)}\n".encode())
        with contextlib.suppress(OSError):
            writer.write(await reader.readline())
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        self.writers.discard(writer)

    @asynccontextmanager
    async def at(self, context: ssl.SSLContext) -> AsyncIterator[int]:
        listener = await asyncio.start_server(self.serve, "127.0.0.1", 0, ssl=context)
        try:
            yield listener.sockets[0].getsockname()[1]
        finally:
            listener.close()
            await until(lambda: not self.writers)


async def ask(port: int, context: ssl.SSLContext) -> tuple[str, str, SpiffeID | None]:
    """What the server called us, what it echoed, and who it was; nothing if there was no connection."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="web.test")
    except ConnectionError:
        return "", "", None
    who = peer_id(writer)
    try:
        writer.write(b"hello\n")
        name, echo = (await reader.readline()).decode().strip(), (await reader.readline()).decode().strip()
    except OSError:
        name = echo = ""
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    return name, echo, who if name else None


class TestAsyncio:
    async def test_both_ends_know_each_other(self, ours: MemorySource, theirs: MemorySource) -> None:
        server = AsyncioServer()
        async with server.at(server_context(ours, is_id(CLIENT))) as port:
            found = await ask(port, client_context(theirs, is_id(SERVER)))
        assert found == (str(CLIENT), "hello", SERVER)

    async def test_a_name_of_ours_by_a_foreign_ca_is_refused_before_the_handler_runs(
        self, ours: MemorySource, theirs: MemorySource
    ) -> None:
        server = AsyncioServer()
        async with server.at(server_context(ours, any_id())) as port:
            client = client_context(theirs, any_id())
            theirs.replace(forged())
            assert await ask(port, client) == ("", "", None)
            assert server.handled == []
            theirs.replace(X509Context((LOCAL.svid("/client"),), BUNDLES))
            assert (await ask(port, client))[0] == str(CLIENT)

    async def test_a_server_of_that_kind_is_refused_before_a_byte_of_ours(
        self, ours: MemorySource, theirs: MemorySource
    ) -> None:
        server = AsyncioServer()
        async with server.at(server_context(ours, any_id())) as port:
            ours.replace(X509Context((FEDERATED.svid(uris=[str(SERVER)]),), BUNDLES))
            with pytest.raises(PeerRefused) as caught:
                await ask(port, client_context(theirs, is_id(SERVER)))
            assert isinstance(caught.value.reason_error, VerificationError)
            ours.replace(X509Context((LOCAL.svid("/other"),), BUNDLES))
            with pytest.raises(PeerRefused) as caught:
                await ask(port, client_context(theirs, is_id(SERVER)))
            assert isinstance(caught.value.reason_error, NotAuthorized)
            ours.replace(X509Context((LOCAL.svid("/server"),), BUNDLES))
            assert (await ask(port, client_context(theirs, is_id(SERVER))))[2] == SERVER

    async def test_one_listener_follows_a_rotation_of_the_root(self, ours: MemorySource, theirs: MemorySource) -> None:
        server, client = AsyncioServer(), client_context(theirs, any_id())
        new = BundleSet((STRANGER.bundle(),))  # another root of the same trust domain
        async with server.at(server_context(ours, any_id())) as port:
            assert (await ask(port, client))[0] == str(CLIENT)
            ours.replace(X509Context((STRANGER.svid("/server"),), new))
            with pytest.raises(PeerRefused):
                await ask(port, client)
            theirs.replace(X509Context((LOCAL.svid("/client"),), new))
            assert await ask(port, client) == ("", "", None)
            theirs.replace(X509Context((STRANGER.svid("/client"),), new))
            assert (await ask(port, client))[0] == str(CLIENT)
            assert server.handled == [CLIENT, CLIENT]

    async def test_a_plain_connection_can_be_turned_into_a_judged_one(
        self, ours: MemorySource, theirs: MemorySource
    ) -> None:
        asked: list[SpiffeID] = []
        done = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            assert await reader.readline() == b"STARTTLS\n"
            writer.write(b"go on\n")
            with contextlib.suppress(OSError):
                await writer.start_tls(server_context(ours, any_id()))
                asked.append(peer_id(writer))
                writer.write(b"secure\n")
                await writer.drain()
                await reader.read()
            writer.transport.abort()
            done.set()

        async def upgrade(port: int, context: ssl.SSLContext) -> bytes:
            done.clear()
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"STARTTLS\n")
            assert await reader.readline() == b"go on\n"
            try:
                await writer.start_tls(context, server_hostname="web.test")
                return await reader.readline()
            except OSError:
                return b""
            finally:
                writer.transport.abort()
                await done.wait()

        listener = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        assert await upgrade(port, client_context(theirs, is_id(SERVER))) == b"secure\n"
        assert asked == [CLIENT]
        assert not await upgrade(port, client_context(theirs, is_id(CLIENT)))
        theirs.replace(forged())
        assert not await upgrade(port, client_context(theirs, is_id(SERVER)))
        assert asked == [CLIENT]
        listener.close()

    async def test_many_at_once_under_rotation(self, ours: MemorySource, theirs: MemorySource) -> None:
        server, client = AsyncioServer(), client_context(theirs, is_id(SERVER))
        async with server.at(server_context(ours, is_id(CLIENT))) as port:

            async def rotate() -> None:
                for _ in range(20):
                    ours.replace(X509Context((LOCAL.svid("/server"),), BUNDLES))
                    theirs.replace(X509Context((LOCAL.svid("/client"),), BUNDLES))
                    await asyncio.sleep(0)

            found = await asyncio.gather(*(ask(port, client) for _ in range(40)), rotate())
        assert found[:-1] == [(str(CLIENT), "hello", SERVER)] * 40


class Handler(http.server.BaseHTTPRequestHandler):
    """Says who asks."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = str(peer_id(self)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_args: object) -> None:
        """Nothing is written to the terminal."""


class QuietServer(http.server.ThreadingHTTPServer):
    """Keeps its errors."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.errors: list[str] = []

    def handle_error(self, _request: object, _address: object) -> None:
        self.errors.append("error")


@contextmanager
def http_server(context: ssl.SSLContext) -> Iterator[int]:
    with QuietServer() as server:
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join(60)


def fetch(port: int, context: ssl.SSLContext) -> str:
    """What an HTTP server calls us; empty if it closed the connection."""
    connection = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=60)
    try:
        connection.request("GET", "/")
        return connection.getresponse().read().decode()
    except (http.client.HTTPException, ConnectionError):
        return ""
    finally:
        connection.close()


class TestTheStandardLibrarysHTTP:
    def test_both_ends_know_each_other(self, ours: MemorySource, theirs: MemorySource) -> None:
        with http_server(server_context(ours, is_id(CLIENT))) as port:
            assert fetch(port, client_context(theirs, is_id(SERVER))) == str(CLIENT)
            connection = http.client.HTTPSConnection(
                "127.0.0.1", port, context=client_context(theirs, any_id()), timeout=60
            )
            with contextlib.closing(connection):
                with pytest.raises(NotAuthenticated):
                    peer_id(connection)
                connection.connect()
                assert peer_id(connection) == SERVER

    def test_strangers_get_no_answer(self, ours: MemorySource, theirs: MemorySource) -> None:
        client = client_context(theirs, is_id(SERVER))
        with http_server(server_context(ours, any_id())) as port:
            theirs.replace(forged())
            with contextlib.suppress(ssl.SSLError):
                assert not fetch(port, client)
            with contextlib.suppress(ssl.SSLError):
                assert not fetch(port, stranger(server_side=False))
            theirs.replace(X509Context((LOCAL.svid("/client"),), BUNDLES))
            assert fetch(port, client) == str(CLIENT)

    def test_a_wrong_server_gets_no_request(self, ours: MemorySource, theirs: MemorySource) -> None:
        with http_server(server_context(ours, any_id())) as port:
            with pytest.raises(PeerRefused) as caught:
                fetch(port, client_context(theirs, is_id(CLIENT)))
            assert isinstance(caught.value.reason_error, NotAuthorized)
            assert fetch(port, client_context(theirs, is_id(SERVER))) == str(CLIENT)


class TestSocketserver:
    """Its handlers call the socket `request`, and those over streams `connection` as well."""

    @pytest.mark.parametrize("kind", [socketserver.BaseRequestHandler, socketserver.StreamRequestHandler])
    def test_handlers_know_who_calls(
        self, ours: MemorySource, theirs: MemorySource, kind: type[socketserver.BaseRequestHandler]
    ) -> None:
        class Greeter(kind):  # type: ignore[misc, valid-type]  # one test for both kinds
            def handle(self) -> None:
                self.request.do_handshake()
                self.request.sendall(str(peer_id(self)).encode())

        class Server(socketserver.ThreadingTCPServer):
            def handle_error(self, _request: object, _address: object) -> None:
                """What is refused raises in the handler's thread."""

        with Server(("127.0.0.1", 0), Greeter) as server:
            context = server_context(ours, is_id(CLIENT))
            server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            try:
                assert greeting(server.server_address, client_context(theirs, is_id(SERVER))) == str(CLIENT)
                theirs.replace(forged())
                assert not greeting(server.server_address, client_context(theirs, is_id(SERVER)))
            finally:
                server.shutdown()
                thread.join(60)


def greeting(address: tuple[str, int] | object, context: ssl.SSLContext) -> str:
    """What a server says first; empty if it says nothing."""
    assert isinstance(address, tuple)
    with (
        contextlib.suppress(OSError),
        socket.create_connection(address, timeout=60) as plain,
        context.wrap_socket(plain) as connection,
    ):
        return connection.recv(100).decode()
    return ""


class TestAiohttp:
    @asynccontextmanager
    async def serving(self, context: ssl.SSLContext) -> AsyncIterator[str]:
        async def answer(request: web.Request) -> web.Response:
            assert request.transport is not None
            assert peer_id(request.transport) == peer_id(request)
            return web.Response(text=str(peer_id(request)))

        app = web.Application()
        app.router.add_get("/", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
        await site.start()
        yield f"https://127.0.0.1:{runner.addresses[0][1]}/"
        await runner.cleanup()

    async def test_both_ends_know_each_other_and_follow_rotations(
        self, ours: MemorySource, theirs: MemorySource
    ) -> None:
        client = client_context(theirs, is_id(SERVER))
        connector = aiohttp.TCPConnector(ssl=client, force_close=True)
        async with self.serving(server_context(ours, any_id())) as url, aiohttp.ClientSession(connector=connector) as s:
            async with s.get(url) as response:
                assert await response.text() == str(CLIENT)
            theirs.replace(X509Context((LOCAL.svid("/renamed"),), BUNDLES))
            async with s.get(url) as response:
                assert await response.text() == "spiffe://cluster.local/renamed"
            ours.replace(X509Context((LOCAL.svid("/wrong"),), BUNDLES))
            with pytest.raises(aiohttp.ClientConnectorCertificateError) as caught:
                await s.get(url)
            assert "spiffe://cluster.local/wrong is refused" in str(caught.value)
            ours.replace(X509Context((LOCAL.svid("/server"),), BUNDLES))
            async with s.get(url) as response:
                assert await response.text() == "spiffe://cluster.local/renamed"


class TestHttpx:
    """A response knows the stream that it came over, while it is read."""

    def test_a_response_tells_its_server(self, ours: MemorySource, theirs: MemorySource) -> None:
        with (
            http_server(server_context(ours, is_id(CLIENT))) as port,
            httpx.Client(verify=client_context(theirs, is_id(SERVER)), timeout=60) as client,
            client.stream("GET", f"https://127.0.0.1:{port}/") as response,
        ):
            assert peer_id(response.extensions["network_stream"]) == SERVER
            assert response.read().decode() == str(CLIENT)

    async def test_a_response_in_asyncio_does_so_too(self, ours: MemorySource, theirs: MemorySource) -> None:
        with http_server(server_context(ours, is_id(CLIENT))) as port:
            async with (
                httpx.AsyncClient(verify=client_context(theirs, is_id(SERVER)), timeout=60) as client,
                client.stream("GET", f"https://127.0.0.1:{port}/") as response,
            ):
                assert peer_id(response.extensions["network_stream"]) == SERVER
                assert (await response.aread()).decode() == str(CLIENT)

    async def test_a_server_that_is_not_welcome_gets_no_request(self, ours: MemorySource, theirs: MemorySource) -> None:
        with http_server(server_context(ours, any_id())) as port:
            url = f"https://127.0.0.1:{port}/"
            async with httpx.AsyncClient(verify=client_context(theirs, is_id(CLIENT)), timeout=60) as client:
                with pytest.raises(httpx.ConnectError, match="/server is refused"):
                    await client.get(url)
            async with httpx.AsyncClient(verify=client_context(theirs, is_id(SERVER)), timeout=60) as client:
                assert (await client.get(url)).text == str(CLIENT)


class TestStrictPeers:
    """Python 3.13 and newer check strictly by default; what we present must pass."""

    @pytest.mark.parametrize("side", ["client", "server"])
    async def test_what_we_present_passes_the_strictest_flags(
        self, ours: MemorySource, theirs: MemorySource, side: str
    ) -> None:
        strict = stranger(server_side=side == "server", chain=LOCAL.chain(key=KEY), key=KEY)
        strict.load_verify_locations(cadata=write_der(LOCAL.certificate))
        strict.verify_mode = ssl.CERT_REQUIRED
        strict.verify_flags |= ssl.VERIFY_X509_STRICT
        seen: list[bytes | None] = []
        done = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            seen.append(writer.get_extra_info("ssl_object").getpeercert(binary_form=True))
            writer.write(await reader.readline())
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            done.set()

        contexts = (
            (client_context(theirs, any_id()), strict)
            if side == "server"
            else (
                strict,
                server_context(ours, any_id()),
            )
        )
        listener = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=contexts[1])
        port = listener.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=contexts[0], server_hostname="web.test")
        writer.write(b"hello\n")
        assert await reader.readline() == b"hello\n"
        if side == "server":
            assert peer_chain(writer)[0].public_key() == KEY.public_key()
        writer.close()
        await writer.wait_closed()
        await done.wait()
        listener.close()
        assert seen[0]
