"""Serves an application's own gRPC server behind a door: every caller is verified in the handshake, before gRPC.

The application makes the server, with its servicers, interceptors and options, and hands it over before it is started.
Here it gets a private port and is started. At the end it is stopped: no new callers, time for the calls in flight, then
the end of every connection. A connection keeps the identities that it began with; to have callers verified again now
and then, set gRPC's own option `grpc.max_connection_age_ms`.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from datetime import timedelta
from typing import TypeAlias, overload

import grpc

from istio_auth.authorize import Authorizer
from istio_auth.clock import Clock
from istio_auth.door import Door, DoorLimits
from istio_auth.errors import ConfigurationError, IstioAuthError
from istio_auth.grpc.loop_thread import LoopThread, is_own, on_own_loop, there
from istio_auth.grpc.peers import known
from istio_auth.host_port import HostPort
from istio_auth.tls import server_context
from istio_auth.x509_source import X509Source

_GRACE = timedelta(seconds=10)
_FAREWELL_SECONDS = 1.0  # for the last bytes of the last calls, however long those took
_FIRST_WORD_SECONDS = 5.0  # a server that runs sends its settings at once (RFC 9113 3.4)
_USED = "the gRPC server was {} before: hand it to serve_grpc unused, which starts and stops it"


class GrpcDoor:
    """The door of a server: where it listens, and how many callers it has.

    Args:
        door: the door.
        address: where it listens.
    """

    def __init__(self, door: Door, address: HostPort) -> None:
        self._door = door
        self._address = address

    @property
    def host(self) -> str:
        """The address that was taken."""
        return self._address.host

    @property
    def port(self) -> int:
        """The port that was taken."""
        return self._address.port

    @property
    def address(self) -> str:
        """Address and port as one text: `127.0.0.1:8443`, `[::1]:8443`."""
        return str(self._address)

    @property
    def connections(self) -> int:
        """How many callers are connected now, including those in their handshake."""
        return self._door.connections

    @property
    def accepted(self) -> int:
        """How many callers were let through so far."""
        return self._door.accepted

    @property
    def refused(self) -> int:
        """How many callers were turned away so far, counted as `on_refused` is called."""
        return self._door.refused


@overload
def serve_grpc(
    server: grpc.aio.Server,
    source: X509Source,
    authorize: Authorizer,
    address: str,
    *,
    grace: timedelta = ...,
    limits: DoorLimits | None = ...,
    on_refused: Callable[[str, IstioAuthError], None] | None = ...,
    clock: Clock | None = ...,
) -> AbstractAsyncContextManager[GrpcDoor]: ...


@overload
def serve_grpc(
    server: grpc.Server,
    source: X509Source,
    authorize: Authorizer,
    address: str,
    *,
    grace: timedelta = ...,
    limits: DoorLimits | None = ...,
    on_refused: Callable[[str, IstioAuthError], None] | None = ...,
    clock: Clock | None = ...,
) -> AbstractContextManager[GrpcDoor]: ...


def serve_grpc(
    server: grpc.aio.Server | grpc.Server,
    source: X509Source,
    authorize: Authorizer,
    address: str,
    *,
    grace: timedelta = _GRACE,
    limits: DoorLimits | None = None,
    on_refused: Callable[[str, IstioAuthError], None] | None = None,
    clock: Clock | None = None,
) -> AbstractAsyncContextManager[GrpcDoor] | AbstractContextManager[GrpcDoor]:
    """Serve callers whose SPIFFE ID is proven and welcome, inside the `with` or `async with` block.

    Args:
        server: made by `grpc.aio.server` (use `async with`) or `grpc.server` (use `with`), and not started yet.
        source: holds the SVID and the bundles; asked at each handshake.
        authorize: decides on each caller whose SPIFFE ID is proven.
        address: where to listen, as `host:port`, `[IPv6 address]:port` or `:port`; port 0 takes one that is free.
        grace: how long calls in flight may take when the block ends.
        limits: how many callers it takes.
        on_refused: called for each caller that was turned away, with `tls` and the reason; not for one that left, or
            came too late, without having sent a byte.
        clock: tells when a chain must be valid; the machine's by default.

    Raises:
        ConfigurationError: we can not listen at the address, the server was started or stopped before, or what was
            given is no source or no authorizer.
        NotReady: somebody else listens there, or the machine is out of sockets.
    """
    context = server_context(source, authorize, alpn=("h2",), clock=clock)
    where = HostPort.parse(address)

    def behind_door(behind: _Server) -> AbstractAsyncContextManager[GrpcDoor]:
        return _behind_door(behind, lambda: Door(limits=limits, on_refused=on_refused), context, where, grace)

    if isinstance(server, grpc.aio.Server):
        return _beside(server, behind_door)
    return _in_thread(behind_door(_BlockingServer(server)))


class _BlockingServer:
    """A server with threads, with the interface of an asyncio server."""

    def __init__(self, server: grpc.Server) -> None:
        self._server = server

    def add_insecure_port(self, address: str) -> int:
        return self._server.add_insecure_port(address)

    async def wait_for_termination(self, timeout: float) -> bool:  # noqa: ASYNC109  # gRPC's signature
        return self._server.wait_for_termination(timeout)

    async def start(self) -> None:
        try:
            self._server.start()
        except ValueError as error:
            raise ConfigurationError(_USED.format("started")) from error

    async def stop(self, grace: float) -> None:
        await asyncio.to_thread(self._server.stop(grace).wait)


class _DistantServer:
    """An asyncio server that runs on another thread's loop, usable from this loop."""

    def __init__(self, server: grpc.aio.Server, loop: asyncio.AbstractEventLoop) -> None:
        self._server = server
        self._loop = loop

    def add_insecure_port(self, address: str) -> int:
        return self._server.add_insecure_port(address)

    async def wait_for_termination(self, timeout: float) -> bool:  # noqa: ASYNC109  # gRPC's signature
        return await there(self._server.wait_for_termination(timeout), self._loop)

    async def start(self) -> None:
        await there(self._server.start(), self._loop)

    async def stop(self, grace: float) -> None:
        await there(self._server.stop(grace), self._loop)


_Server: TypeAlias = grpc.aio.Server | _BlockingServer | _DistantServer


@asynccontextmanager
async def _beside(
    server: grpc.aio.Server, behind_door: Callable[[_Server], AbstractAsyncContextManager[GrpcDoor]]
) -> AsyncIterator[GrpcDoor]:
    loop = asyncio.get_running_loop()
    served = behind_door(server if is_own(loop) else _DistantServer(server, loop))
    async with on_own_loop(served, "istio-auth-door") as door:
        yield door


@contextmanager
def _in_thread(served: AbstractAsyncContextManager[GrpcDoor]) -> Iterator[GrpcDoor]:
    with LoopThread("istio-auth-door") as loop, loop.using(served) as door:
        yield door


@asynccontextmanager
async def _behind_door(
    server: _Server,
    make_door: Callable[[], Door],
    context: ssl.SSLContext,
    where: HostPort,
    grace: timedelta,
) -> AsyncIterator[GrpcDoor]:
    if not await server.wait_for_termination(0):  # to add a port to a stopped server would end the process
        raise ConfigurationError(_USED.format("stopped"))
    async with make_door() as door:
        with known(door):
            server.add_insecure_port(door.target)
            taken = HostPort(*await door.listen_tls(where.host, where.port, context))
            await server.start()
            await _check_started(door.target)
            try:
                yield GrpcDoor(door, taken)
            finally:
                over = time.monotonic() + grace.total_seconds()
                door.stop_listening()
                await server.stop(grace.total_seconds())
                await door.close(timedelta(seconds=max(over - time.monotonic(), _FAREWELL_SECONDS)))


async def _check_started(target: str) -> None:
    """Check that the server answers: one that was running already accepts a new port, but never answers there."""
    reader, writer = await asyncio.open_unix_connection(target.removeprefix("unix:"))
    try:
        async with asyncio.timeout(_FIRST_WORD_SECONDS):
            await reader.read(1)
    except TimeoutError:
        raise ConfigurationError(_USED.format("started")) from None
    finally:
        writer.close()
