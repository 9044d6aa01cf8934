"""Each example of a server, started on a free port and stopped again."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from socketserver import TCPServer

import hypercorn.asyncio

from docs.examples import (
    aiohttp_server,
    asyncio_server,
    http_server,
    hypercorn_server,
    socket_server,
    socketserver_server,
    uvicorn_server,
)
from istio_auth.x509_source import X509Source
from tests.fakes.asgi import serving


@asynccontextmanager
async def on_asyncio(source: X509Source) -> AsyncIterator[int]:
    async with await asyncio_server.listen(source, port=0) as server:
        yield server.sockets[0].getsockname()[1]


@asynccontextmanager
async def on_aiohttp(source: X509Source) -> AsyncIterator[int]:
    runner = await aiohttp_server.start(source, port=0)
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


@asynccontextmanager
async def on_uvicorn(source: X509Source) -> AsyncIterator[int]:
    async with serving(uvicorn_server.server(source, port=0)) as port:
        yield port


@asynccontextmanager
async def on_hypercorn(source: X509Source) -> AsyncIterator[int]:
    config = hypercorn_server.SpiffeConfig(source)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config.bind = [f"fd://{listener.fileno()}"]
        port: int = listener.getsockname()[1]
        over = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(hypercorn.asyncio.serve(hypercorn_server.app, config, shutdown_trigger=over.wait))
            try:
                yield port
            finally:
                over.set()
                listener.detach()  # hypercorn has closed it


@asynccontextmanager
async def on_sockets(source: X509Source) -> AsyncIterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):  # at the end
                socket_server.serve(source, listener)

        with in_thread(serve, stop=lambda: listener.shutdown(socket.SHUT_RDWR)):
            yield listener.getsockname()[1]


@asynccontextmanager
async def on_socketserver(source: X509Source) -> AsyncIterator[int]:
    with socketserver_server.server(source, port=0) as server, served(server) as port:
        yield port


@asynccontextmanager
async def on_http_server(source: X509Source) -> AsyncIterator[int]:
    with http_server.server(source, port=0) as server, served(server) as port:
        yield port


@contextmanager
def served(server: TCPServer) -> Iterator[int]:
    """Have a server of the standard library serve in a thread."""
    with in_thread(lambda: server.serve_forever(poll_interval=0.01), stop=server.shutdown):
        yield server.socket.getsockname()[1]


@contextmanager
def in_thread(run: Callable[[], None], *, stop: Callable[[], None]) -> Iterator[None]:
    """Have something run meanwhile."""
    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop()
        thread.join(60)
        assert not thread.is_alive()
