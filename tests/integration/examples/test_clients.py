"""Each example of a client knows its server, sends a wrong one nothing and says why, and follows a new root."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import socketserver
import threading
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial

import pytest

from docs.examples import (
    aiohttp_client,
    asyncio_client,
    httpx_async_client,
    httpx_client,
    requests_client,
    socket_client,
    urllib3_client,
)
from istio_auth.x509_source import X509Source
from tests.integration.examples import servers
from tests.integration.examples.world import CLIENT, OTHER, SERVER, World

Ask = Callable[[], Awaitable[str]]
Client = Callable[[X509Source, int], AbstractAsyncContextManager[Ask]]


@asynccontextmanager
async def by_asyncio(source: X509Source, port: int) -> AsyncIterator[Ask]:
    yield lambda: asyncio_client.ask(source, port=port)


@asynccontextmanager
async def by_sockets(source: X509Source, port: int) -> AsyncIterator[Ask]:
    yield lambda: asyncio.to_thread(socket_client.ask, source, port=port)


@asynccontextmanager
async def by_aiohttp(source: X509Source, port: int) -> AsyncIterator[Ask]:
    async with aiohttp_client.session(source) as http:

        async def ask() -> str:
            async with http.get(f"https://localhost:{port}/") as response:
                return await response.text()

        yield ask


@asynccontextmanager
async def by_httpx(source: X509Source, port: int) -> AsyncIterator[Ask]:
    with httpx_client.client(source) as http:
        yield lambda: asyncio.to_thread(httpx_client.ask, http, f"https://localhost:{port}/")


@asynccontextmanager
async def by_httpx_async(source: X509Source, port: int) -> AsyncIterator[Ask]:
    async with httpx_async_client.client(source) as http:
        yield lambda: httpx_async_client.ask(http, f"https://localhost:{port}/")


@asynccontextmanager
async def by_requests(source: X509Source, port: int) -> AsyncIterator[Ask]:
    with requests_client.session(source) as http:

        def ask() -> str:
            return http.get(f"https://localhost:{port}/", timeout=60).text

        yield partial(asyncio.to_thread, ask)


@asynccontextmanager
async def by_requests_told_not_to_verify(source: X509Source, port: int) -> AsyncIterator[Ask]:
    with requests_client.session(source) as http:
        http.verify = False

        def ask() -> str:
            return http.get(f"https://localhost:{port}/", timeout=60).text

        yield partial(asyncio.to_thread, ask)


@asynccontextmanager
async def by_requests_through_a_proxy(source: X509Source, port: int) -> AsyncIterator[Ask]:
    with (
        socketserver.ThreadingTCPServer(("127.0.0.1", 0), Connecting) as connecting,
        servers.served(connecting) as proxy,
        pytest.MonkeyPatch.context() as environment,
    ):
        environment.setenv("https_proxy", f"http://127.0.0.1:{proxy}")
        environment.setenv("no_proxy", "")
        async with by_requests_told_not_to_verify(source, port) as ask:
            yield ask


class Connecting(socketserver.StreamRequestHandler):
    """An HTTP proxy, which connects its clients with whomever they name."""

    def handle(self) -> None:
        method, address, _ = self.rfile.readline().split(b" ")
        assert method == b"CONNECT"
        while self.rfile.readline().strip():
            pass
        host, port = address.decode().split(":")
        with socket.create_connection((host, int(port))) as beyond:
            self.wfile.write(b"HTTP/1.1 200 connected\r\n\r\n")
            onward = threading.Thread(target=pass_on, args=(self.connection, beyond))
            onward.start()
            pass_on(beyond, self.connection)
            onward.join()


def pass_on(one: socket.socket, other: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while said := one.recv(1 << 16):
            other.sendall(said)
        other.shutdown(socket.SHUT_WR)


@asynccontextmanager
async def by_urllib3(source: X509Source, port: int) -> AsyncIterator[Ask]:
    with urllib3_client.pool(source) as http:

        def ask() -> str:
            return http.request("GET", f"https://localhost:{port}/").data.decode()

        yield partial(asyncio.to_thread, ask)


LINES = f"{SERVER} answers {CLIENT} says hello\n"
CLIENTS = {
    "asyncio_client": (by_asyncio, servers.on_asyncio, LINES),
    "socket_client": (by_sockets, servers.on_asyncio, LINES),
    "aiohttp_client": (by_aiohttp, servers.on_http_server, f"{CLIENT}\n"),
    "httpx_client": (by_httpx, servers.on_http_server, f"{SERVER} answers {CLIENT}\n"),
    "httpx_async_client": (by_httpx_async, servers.on_http_server, f"{SERVER} answers {CLIENT}\n"),
    "requests_client": (by_requests, servers.on_http_server, f"{CLIENT}\n"),
    "requests_client, verify=False": (by_requests_told_not_to_verify, servers.on_http_server, f"{CLIENT}\n"),
    "requests_client, verify=False, through a proxy": (
        by_requests_through_a_proxy,
        servers.on_http_server,
        f"{CLIENT}\n",
    ),
    "urllib3_client": (by_urllib3, servers.on_http_server, f"{CLIENT}\n"),
}


@pytest.mark.parametrize("name", CLIENTS)
async def test_a_client_knows_its_server_and_refuses_others_before_and_after_a_new_root(
    name: str, world: World
) -> None:
    client, running, answer = CLIENTS[name]
    async with running(world.server) as port, client(world.client, port) as ask:
        assert await ask() == answer

        world.server_is(OTHER)
        assert f"{OTHER} is refused: welcome is {SERVER}" in await reason(ask)
        world.server_is(SERVER)
        assert await ask() == answer

        of_the_old_root = world.svid(SERVER)
        world.rotate_root()
        assert await ask() == answer
        world.server_holds(of_the_old_root)
        assert "does not chain to the bundle" in await reason(ask)


async def reason(ask: Ask) -> str:
    """Why a request failed, as whoever made it sees it."""
    try:
        answer = await ask()
    except Exception as error:  # noqa: BLE001  # each library has its own
        return "".join(traceback.format_exception(error))
    raise AssertionError(f"the server was not refused: {answer}")
