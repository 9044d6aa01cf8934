"""What `bench.tls` lets meet: pairs of TLS contexts, over blocking sockets and in asyncio, both ends in one process.

A handshake counts from the dial to the first byte that the server sends after it: only that byte shows a client of
TLS 1.3 that it was judged as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

from istio_auth.authorize import any_id
from istio_auth.bundle import BundleSet
from istio_auth.pem import write_der
from istio_auth.sources.memory import MemorySource
from istio_auth.svid import X509SVID
from istio_auth.tls import client_context, server_context
from istio_auth.x509_source import X509Context
from tests.fakes.authority import FakeAuthority

AT_ONCE = 8  # handshakes in asyncio
CHUNK = 64 << 10
MESSAGE = b"m" * 100
ROTATION_SECONDS = 0.1
_HOST = "127.0.0.1"
_PREPARED = 16
_Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[None, None, None]]
_AUTHORITY = FakeAuthority()
_BUNDLES = BundleSet((_AUTHORITY.bundle(),))


@dataclass(frozen=True)
class Pair:
    """The contexts of a server and a client."""

    server: ssl.SSLContext
    client: ssl.SSLContext


@dataclass(frozen=True)
class Taken:
    """Some handshakes: the seconds of each, and of all, which overlap where several are made at once."""

    each: list[float]
    seconds: float

    @property
    def rate(self) -> float:
        """How many there were a second."""
        return len(self.each) / self.seconds


@dataclass
class Workload:
    """One end's identities, made beforehand: what a rotation costs must not be what a certificate costs."""

    path: str
    prepared: list[X509Context] = field(init=False)
    source: MemorySource = field(init=False)

    def __post_init__(self) -> None:
        self.prepared = [X509Context((_AUTHORITY.svid(self.path),), _BUNDLES) for _ in range(_PREPARED)]
        self._turns = itertools.cycle(self.prepared)
        self.source = MemorySource(next(self._turns))

    def rotate(self) -> None:
        """Hold the next SVID."""
        self.source.replace(next(self._turns))


def ours(server: Workload, client: Workload) -> Pair:
    """Contexts of this library."""
    return Pair(server_context(server.source, any_id()), client_context(client.source, any_id()))


def plain(server: Workload, client: Workload) -> Pair:
    """Contexts of the standard library, which demand and check a certificate of the same CA, and know no names."""
    return Pair(
        _plain(ssl.PROTOCOL_TLS_SERVER, server.source.svid()), _plain(ssl.PROTOCOL_TLS_CLIENT, client.source.svid())
    )


@contextmanager
def rotating(*workloads: Workload) -> Iterator[None]:
    """Rotate all of them, again and again."""
    done = threading.Event()

    def rotate() -> None:
        while not done.wait(ROTATION_SECONDS):
            for workload in workloads:
                workload.rotate()

    thread = threading.Thread(target=rotate)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


class Blocking:
    """Blocking sockets: one handshake after the other, the server in a thread of its own."""

    name = "blocking"

    def handshakes(self, pair: Pair, seconds: float) -> Taken:
        """As many handshakes as there is time for."""

        def greet(connection: ssl.SSLSocket) -> None:
            connection.sendall(b"!")

        took: list[float] = []
        with _serving(pair.server, greet) as address:
            began = time.perf_counter()
            while (started := time.perf_counter()) < began + seconds:
                with pair.client.wrap_socket(socket.create_connection(address)) as connection:
                    assert connection.recv(1) == b"!"
                    took.append(time.perf_counter() - started)
            return Taken(took, time.perf_counter() - began)

    def stream(self, pair: Pair, size: int) -> float:
        """The seconds that so many bytes took from the client to the server."""

        def read_all(connection: ssl.SSLSocket) -> None:
            left, room = size, bytearray(CHUNK)
            while left:
                left -= connection.recv_into(room)
            connection.sendall(b"!")

        def send(connection: ssl.SSLSocket) -> None:
            for _ in range(size // CHUNK):
                connection.sendall(bytes(CHUNK))
            assert connection.recv(1) == b"!"

        return self._timed(pair, read_all, send)

    def messages(self, pair: Pair, count: int) -> float:
        """The seconds that so many short messages took there and back."""

        def echo(connection: ssl.SSLSocket) -> None:
            while message := connection.recv(len(MESSAGE)):
                connection.sendall(message)

        def ask(connection: ssl.SSLSocket) -> None:
            for _ in range(count):
                connection.sendall(MESSAGE)
                connection.recv(len(MESSAGE))

        return self._timed(pair, echo, ask)

    def _timed(self, pair: Pair, serve: Callable[[ssl.SSLSocket], None], ask: Callable[[ssl.SSLSocket], None]) -> float:
        with (
            _serving(pair.server, serve) as address,
            pair.client.wrap_socket(socket.create_connection(address)) as connection,
        ):
            started = time.perf_counter()
            ask(connection)
            return time.perf_counter() - started


class InAsyncio:
    """asyncio's streams: several handshakes at once on one loop, which serves both ends."""

    name = "asyncio"

    def handshakes(self, pair: Pair, seconds: float) -> Taken:
        """See `Blocking.handshakes`."""

        async def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"!")
            await writer.drain()

        async def dial(address: tuple[str, int], end: float) -> list[float]:
            took: list[float] = []
            while (started := time.perf_counter()) < end:
                async with _dialled(address, pair.client) as (reader, _writer):
                    assert await reader.readexactly(1) == b"!"
                    took.append(time.perf_counter() - started)
            return took

        async def run() -> Taken:
            async with _async_serving(pair.server, greet) as address:
                began = time.perf_counter()
                took = await asyncio.gather(*(dial(address, began + seconds) for _ in range(AT_ONCE)))
                return Taken(list(itertools.chain(*took)), time.perf_counter() - began)

        return asyncio.run(run())

    def stream(self, pair: Pair, size: int) -> float:
        """See `Blocking.stream`."""

        async def read_all(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            left = size
            while left:
                left -= len(await reader.read(CHUNK))
            writer.write(b"!")

        async def send(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            for _ in range(size // CHUNK):
                writer.write(bytes(CHUNK))
                await writer.drain()
            assert await reader.readexactly(1) == b"!"

        return asyncio.run(self._timed(pair, read_all, send))

    def messages(self, pair: Pair, count: int) -> float:
        """See `Blocking.messages`."""

        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while message := await reader.read(len(MESSAGE)):
                writer.write(message)

        async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            for _ in range(count):
                writer.write(MESSAGE)
                await reader.readexactly(len(MESSAGE))

        return asyncio.run(self._timed(pair, echo, ask))

    async def _timed(self, pair: Pair, serve: _Talk, ask: _Talk) -> float:
        async with (
            _async_serving(pair.server, serve) as address,
            _dialled(address, pair.client) as (reader, writer),
        ):
            started = time.perf_counter()
            await ask(reader, writer)
            return time.perf_counter() - started


def _plain(protocol: int, svid: X509SVID) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=write_der(_AUTHORITY.certificate))
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0  # as ours: they would be work that judges nobody
    with open(os.memfd_create("svid"), "wb", buffering=0) as file:  # noqa: PTH123  # a descriptor, not a path
        file.write(svid.chain_pem() + svid.key_pem())
        context.load_cert_chain(f"/proc/self/fd/{file.fileno()}")
    return context


@contextmanager
def _serving(context: ssl.SSLContext, talk: Callable[[ssl.SSLSocket], None]) -> Iterator[tuple[str, int]]:
    """A server that has one connection at a time."""

    def serve() -> None:
        while True:
            try:
                accepted, _ = listener.accept()
            except OSError:
                return  # closed
            with contextlib.suppress(OSError), context.wrap_socket(accepted, server_side=True) as connection:
                talk(connection)

    with socket.create_server((_HOST, 0), backlog=100) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()
        finally:
            listener.shutdown(socket.SHUT_RDWR)  # wakes the one who accepts
            thread.join()


@asynccontextmanager
async def _async_serving(context: ssl.SSLContext, talk: _Talk) -> AsyncIterator[tuple[str, int]]:
    open_ends: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if (task := asyncio.current_task()) is not None:
            open_ends.add(task)
            task.add_done_callback(open_ends.discard)
        with contextlib.suppress(OSError):
            await talk(reader, writer)
        await _closed(writer)

    listener = await asyncio.start_server(serve, _HOST, 0, ssl=context, backlog=100)
    try:
        yield listener.sockets[0].getsockname()
    finally:
        listener.close()
        await asyncio.gather(*open_ends)


@asynccontextmanager
async def _dialled(
    address: tuple[str, int], context: ssl.SSLContext
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(*address, ssl=context)
    try:
        yield reader, writer
    finally:
        await _closed(writer)


async def _closed(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
