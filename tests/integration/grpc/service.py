"""A service with a method of every kind, on either kind of server, and whoever calls it; nothing needs protoc."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeAlias, cast

import grpc
from cryptography import x509

from istio_auth.authorize import Authorizer, any_id
from istio_auth.errors import IstioAuthError
from istio_auth.grpc import (
    AuthorizingInterceptor,
    BlockingAuthorizingInterceptor,
    GrpcChannel,
    GrpcDoor,
    peer_chain,
    peer_id,
    serve_grpc,
)
from istio_auth.sources.memory import MemorySource
from istio_auth.spiffe_id import SpiffeID
from tests.fakes.waiting import until
from tests.vectors.x509_svid import BUNDLES, LOCAL

SERVER = SpiffeID.parse("spiffe://cluster.local/server")
CLIENT = SpiffeID.parse("spiffe://cluster.local/client")
OTHER = SpiffeID.parse("spiffe://cluster.local/other")

ECHO, COUNT, JOIN, CHAT, WAIT = (f"/test.Talk/{name}" for name in ("Echo", "Count", "Join", "Chat", "Wait"))
KINDS = ("aio", "blocking")

AT_ONCE = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 50)]
INTERCEPTORS = {"aio": AuthorizingInterceptor, "blocking": BlockingAuthorizingInterceptor}

_AioContext: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"


def holding(spiffe_id: SpiffeID) -> MemorySource:
    """A source with an SVID of this trust domain."""
    return MemorySource.of(LOCAL.svid(spiffe_id.path), *BUNDLES)


@dataclass
class Talk:
    """What the methods have seen.

    Attributes:
        callers: the SPIFFE ID of each call's caller.
        chains: what proved it.
        ended: what became of each call that waited.
        waiting: how many calls wait now.
        go_on: lets calls go on that wait; one for each kind of server.
    """

    callers: list[SpiffeID] = field(default_factory=list)
    chains: list[tuple[x509.Certificate, ...]] = field(default_factory=list)
    metadata: list[dict[str, str | bytes]] = field(default_factory=list)
    remaining: list[float | None] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    waiting: int = 0
    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    threads_go_on: threading.Event = field(default_factory=threading.Event)

    def heard(self, context: _AioContext | grpc.ServicerContext) -> None:
        """Note who calls, and with what."""
        self.callers.append(peer_id(context))
        self.chains.append(peer_chain(context))
        self.metadata.append(dict(cast("Sequence[tuple[str, str]]", context.invocation_metadata() or ())))
        self.remaining.append(context.time_remaining())

    def let_go(self) -> None:
        """Let all calls go on that wait."""
        self.go_on.set()
        self.threads_go_on.set()

    def handlers(self, kind: str) -> grpc.GenericRpcHandler[bytes, bytes]:
        """The methods, for a kind of server."""
        echo, count, join, chat, wait = self._aio() if kind == "aio" else self._blocking()
        return grpc.method_handlers_generic_handler(
            "test.Talk",
            {
                "Echo": grpc.unary_unary_rpc_method_handler(echo),
                "Count": grpc.unary_stream_rpc_method_handler(count),
                "Join": grpc.stream_unary_rpc_method_handler(join),
                "Chat": grpc.stream_stream_rpc_method_handler(chat),
                "Wait": grpc.unary_unary_rpc_method_handler(wait),
            },
        )

    def _aio(self) -> tuple[Callable[..., object], ...]:
        async def echo(request: bytes, context: _AioContext) -> bytes:
            self.heard(context)
            context.set_trailing_metadata((("said", "all"),))
            return request

        async def count(request: bytes, context: _AioContext) -> AsyncIterator[bytes]:
            self.heard(context)
            for number in range(int(request)):
                yield str(number).encode()

        async def join(requests: AsyncIterator[bytes], context: _AioContext) -> bytes:
            self.heard(context)
            return b",".join([request async for request in requests])

        async def chat(requests: AsyncIterator[bytes], context: _AioContext) -> AsyncIterator[bytes]:
            self.heard(context)
            async for request in requests:
                yield request

        async def wait(request: bytes, context: _AioContext) -> bytes:
            self.heard(context)
            self.waiting += 1
            try:
                await self.go_on.wait()
            except asyncio.CancelledError:
                self.ended.append("cancelled")
                raise
            finally:
                self.waiting -= 1
            self.ended.append("answered")
            return request

        return echo, count, join, chat, wait

    def _blocking(self) -> tuple[Callable[..., object], ...]:
        def echo(request: bytes, context: grpc.ServicerContext) -> bytes:
            self.heard(context)
            context.set_trailing_metadata((("said", "all"),))
            return request

        def count(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
            self.heard(context)
            for number in range(int(request)):
                yield str(number).encode()

        def join(requests: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
            self.heard(context)
            return b",".join(requests)

        def chat(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
            self.heard(context)
            yield from requests

        def wait(request: bytes, context: grpc.ServicerContext) -> bytes:
            self.heard(context)
            self.waiting += 1
            if not context.add_callback(self.threads_go_on.set):  # it was given up already
                self.threads_go_on.set()
            self.threads_go_on.wait(60)
            self.waiting -= 1
            self.ended.append("answered" if context.is_active() else "cancelled")
            return request

        return echo, count, join, chat, wait


def new_server(
    kind: str,
    talk: Talk,
    *,
    interceptors: Sequence[object] = (),
    options: Sequence[tuple[str, int]] = (),
    threads: int = 8,
) -> grpc.aio.Server | grpc.Server:
    """A server that was not started."""
    server: grpc.aio.Server | grpc.Server
    if kind == "aio":
        server = grpc.aio.server(
            interceptors=cast("Sequence[grpc.aio.ServerInterceptor[object, object]]", interceptors), options=options
        )
    else:
        server = grpc.server(
            ThreadPoolExecutor(threads),
            interceptors=cast("list[grpc.ServerInterceptor[object, object]]", list(interceptors)),
            options=options,
        )
    server.add_generic_rpc_handlers((talk.handlers(kind),))
    return server


@asynccontextmanager
async def served(
    server: grpc.aio.Server | grpc.Server,
    source: MemorySource | None = None,
    *,
    authorize: Authorizer | None = None,
    address: str = "127.0.0.1:0",
    **more: object,
) -> AsyncIterator[GrpcDoor]:
    """Serve it; one with threads is entered and left on another thread, for its clients may live in this loop."""
    how = serve_grpc(server, source or holding(SERVER), authorize or any_id(), address, **more)  # type: ignore[call-overload]  # either kind
    if isinstance(server, grpc.aio.Server):
        async with how as door:
            yield door
        return
    async with in_thread(how) as door:
        yield door


@asynccontextmanager
async def in_thread(context: AbstractContextManager[GrpcDoor]) -> AsyncIterator[GrpcDoor]:
    """Enter and leave this without blocking the loop."""
    door = await asyncio.to_thread(context.__enter__)
    try:
        yield door
    finally:
        await asyncio.to_thread(context.__exit__, None, None, None)


def echo(channel: grpc.aio.Channel) -> grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]:
    """The method that says what was said."""
    return channel.unary_unary(ECHO, None, None)


async def given_up(call: grpc.aio.Call) -> None:
    """Cancel a call, and wait for its end: told later, it would be told to a loop that is closed."""
    call.cancel()
    assert await call.code() == grpc.StatusCode.CANCELLED


async def cut(channel: GrpcChannel) -> None:
    """End the channel's connection, so that its next call needs another."""
    for passage in list(channel._portal.passages):
        passage.close()
    await until(lambda: channel.get_state() != grpc.ChannelConnectivity.READY)


class Refusals:
    """What a door told of those that it turned away."""

    def __init__(self) -> None:
        self.reasons: list[IstioAuthError] = []

    def __call__(self, listener: str, reason: IstioAuthError) -> None:
        assert listener == "tls"
        self.reasons.append(reason)
