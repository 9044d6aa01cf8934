"""Each example of a server knows its clients, refuses strangers with the reason, and follows a change of the root."""

from __future__ import annotations

import asyncio
import http.client
import socket
import struct
from types import ModuleType

import aiohttp
import httpx
import pytest

from docs.examples import socket_client, starlette_app, uvicorn_behind_proxy
from istio_auth.authorize import is_id
from istio_auth.peer import peer_id
from istio_auth.spiffe_id import SpiffeID
from istio_auth.tls import client_context
from istio_auth.x509_source import X509Source
from tests.fakes.asgi import serving
from tests.fakes.waiting import until
from tests.integration.examples import servers
from tests.integration.examples.world import CLIENT, OTHER, SERVER, World


def fetch(source: X509Source, port: int) -> str:
    """What an HTTP server answers, after its name."""
    context = client_context(source, is_id(SERVER))
    connection = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=60)
    try:
        connection.request("GET", "/")
        server = peer_id(connection)
        response = connection.getresponse()
        assert response.status == 200
        return f"{server} answers {response.read().decode()}"
    finally:
        connection.close()


def say(source: X509Source, port: int) -> str:
    """What a server of lines answers, after its name."""
    answer = socket_client.ask(source, port=port)
    if answer.endswith(" answers "):
        raise ConnectionError("closed without an answer")
    return answer


SERVERS = {
    "asyncio_server": (servers.on_asyncio, say, f"{SERVER} answers {CLIENT} says hello\n"),
    "socket_server": (servers.on_sockets, say, f"{SERVER} answers {CLIENT} says hello\n"),
    "socketserver_server": (servers.on_socketserver, say, f"{SERVER} answers {CLIENT} says hello\n"),
    "http_server": (servers.on_http_server, fetch, f"{SERVER} answers {CLIENT}\n"),
    "aiohttp_server": (servers.on_aiohttp, fetch, f"{SERVER} answers {CLIENT}\n"),
    "uvicorn_server": (servers.on_uvicorn, fetch, f"{SERVER} answers {CLIENT}\n"),
    "hypercorn_server": (servers.on_hypercorn, fetch, f"{SERVER} answers welcome\n"),
}


@pytest.mark.parametrize("name", SERVERS)
async def test_a_server_knows_its_client_and_refuses_others_before_and_after_a_new_root(
    name: str, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    running, ask, answer = SERVERS[name]
    async with running(world.server) as port:
        assert await asyncio.to_thread(ask, world.client, port) == answer

        async def refused_for(reason: str) -> None:
            with pytest.raises((OSError, http.client.HTTPException)):
                await asyncio.to_thread(ask, world.client, port)
            await until(lambda: reason in caplog.text)  # the alert may be here before the server's log

        world.client_is(OTHER)
        await refused_for(f"{OTHER} is refused: welcome is {CLIENT}")
        world.client_is(CLIENT)
        assert await asyncio.to_thread(ask, world.client, port) == answer

        of_the_old_root = world.svid(CLIENT)
        world.rotate_root()
        assert await asyncio.to_thread(ask, world.client, port) == answer
        assert "does not chain to the bundle" not in caplog.text
        world.client_holds(of_the_old_root)
        await refused_for("does not chain to the bundle")


@pytest.mark.parametrize("example", [uvicorn_behind_proxy, starlette_app], ids=lambda module: module.__name__)
async def test_an_application_behind_a_gateway_knows_whom_the_gateway_serves(example: ModuleType, world: World) -> None:
    gateway = SpiffeID.parse("spiffe://cluster.local/ns/edge/sa/gateway")
    foreigner = SpiffeID.parse("spiffe://foreign.test/ns/shop/sa/client")
    world.client_is(gateway)
    context = client_context(world.client, is_id(SERVER))
    async with (
        serving(example.server(world.server, port=0)) as port,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session,
    ):
        answers = []
        for forwarded in ({"x-forwarded-client-cert": f"By={gateway};URI={who}"} for who in (CLIENT, foreigner)):
            async with session.get(f"https://127.0.0.1:{port}/", headers=forwarded) as response:
                answers.append((response.status, await response.text()))
        assert answers == [(200, f"{CLIENT}\n"), (403, "")]


@pytest.mark.parametrize("name", SERVERS)
async def test_clients_that_say_nothing_nonsense_or_leave_stop_no_server(name: str, world: World) -> None:
    running, ask, answer = SERVERS[name]
    async with running(world.server) as port:
        with socket.create_connection(("127.0.0.1", port)), socket.create_connection(("127.0.0.1", port)) as nonsense:
            nonsense.sendall(b"GET / HTTP/1.1\r\n\r\n")
            for _ in range(3):  # fewer than the backlog of http.server
                with socket.create_connection(("127.0.0.1", port)) as hasty:
                    hasty.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # ends by a reset
                    hasty.sendall(b"\x16")
            assert await asyncio.to_thread(ask, world.client, port) == answer


async def test_hypercorn_speaks_http_2_to_a_client_that_asks_for_it(world: World) -> None:
    async with (
        servers.on_hypercorn(world.server) as port,
        httpx.AsyncClient(verify=client_context(world.client, is_id(SERVER)), http2=True) as client,
    ):
        response = await client.get(f"https://127.0.0.1:{port}/")
        assert (response.http_version, response.text) == ("HTTP/2", "welcome\n")
