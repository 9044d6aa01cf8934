"""A server behind a real door, whose methods do what a test puts into them, and every kind of client for it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import cast

import grpc
from google.protobuf.wrappers_pb2 import StringValue

from istio_auth.authorize import any_id, is_id
from istio_auth.door import Door, Portal
from istio_auth.errors import Code
from istio_auth.pem import write_certificates
from istio_auth.rpc.channel import Channel
from istio_auth.rpc.method import Call, Method, Service
from istio_auth.rpc.server import Guard, Limits, RpcServer
from istio_auth.sources.memory import MemorySource
from istio_auth.tls import client_context, server_context
from tests.fakes.authority import FakeAuthority

ASK, SMALL, TALK = "/test.Bench/Ask", "/test.Bench/Small", "/test.Bench/Talk"
SMALL_BYTES = 100
NAME = "server.test"
PATIENCE = timedelta(seconds=60)


async def echo(request: StringValue, _call: Call) -> StringValue:
    """Say what was said."""
    return request


async def echo_each(requests: AsyncIterator[StringValue], _call: Call) -> AsyncGenerator[StringValue]:
    """Say each thing that was said."""
    async for request in requests:
        yield request


@dataclass
class Bench:
    """What is served, and by whom it can be asked.

    Attributes:
        answer, talk: what the methods do.
        counted: what was told to whoever counts calls: path and code.
    """

    authority: FakeAuthority
    folder: Path
    door: Door
    answer: Callable[[StringValue, Call], Awaitable[StringValue]] = echo
    talk: Callable[[AsyncIterator[StringValue], Call], AsyncGenerator[StringValue]] = echo_each
    counted: list[tuple[str, Code | None]] = field(default_factory=list)
    port: int = 0
    server: RpcServer = field(init=False)

    @property
    def socket(self) -> str:
        return f"unix:{self.folder / 'bench.sock'}"

    def services(self) -> tuple[Service, ...]:
        async def ask(request: StringValue, call: Call) -> StringValue:
            return await self.answer(request, call)

        async def talk(requests: AsyncIterator[StringValue], call: Call) -> AsyncGenerator[StringValue]:
            async for response in self.talk(requests, call):
                yield response

        methods = {
            "Ask": Method.unary(ask, StringValue, StringValue),
            "Small": Method.unary(ask, StringValue, StringValue, max_request_bytes=SMALL_BYTES),
            "Talk": Method.stream(talk, StringValue, StringValue),
        }
        return (Service("test.Bench", methods),)

    def source(self, path: str = "/client") -> MemorySource:
        """A client of our trust domain."""
        return MemorySource.of(self.authority.svid(path), self.authority.bundle())

    @asynccontextmanager
    async def ours(self, kind: str = "tls") -> AsyncIterator[Channel]:
        """Our own channel."""
        async with AsyncExitStack() as stack:
            way: Portal | str = self.socket
            if kind == "tls":
                server = self.authority.svid("/server").id
                context = client_context(self.source(), is_id(server), alpn=("h2",))
                way = await stack.enter_async_context(Portal("127.0.0.1", self.port, context))
            yield await stack.enter_async_context(Channel(way))

    @asynccontextmanager
    async def plain(self, kind: str = "tls", *, certificate: bool = True) -> AsyncIterator[grpc.aio.Channel]:
        """GRPC's own client, with its own TLS."""
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
        if kind == "unix":
            channel = grpc.aio.insecure_channel(self.socket, options=options)
        else:
            svid = self.authority.svid("/client")
            key, chain = (svid.key_pem(), write_certificates(svid.chain)) if certificate else (None, None)
            credentials = grpc.ssl_channel_credentials(self.authority.bundle().to_pem(), key, chain)
            named = [*options, ("grpc.ssl_target_name_override", NAME)]
            channel = grpc.aio.secure_channel(f"127.0.0.1:{self.port}", credentials, options=named)
        async with channel:
            yield channel


@asynccontextmanager
async def serving(
    authority: FakeAuthority,
    folder: Path,
    *,
    limits: Limits | None = None,
    guard: Guard | None = None,
) -> AsyncIterator[Bench]:
    """A bench on loopback and on a Unix socket."""
    async with Door() as door:
        bench = Bench(authority, folder, door)

        def count(path: str, code: Code | None, _seconds: float) -> None:
            bench.counted.append((path, code))

        bench.server = RpcServer(door, bench.services(), limits=limits, on_call=count, guard=guard)
        await bench.server.start()
        source = MemorySource.of(authority.svid("/server", dns_names=[NAME]), authority.bundle())
        context = server_context(source, any_id(), require_client_certificate=False, alpn=("h2",))
        _, bench.port = await door.listen_tls("127.0.0.1", 0, context)
        await door.listen_unix(folder / "bench.sock", name="bench")
        try:
            yield bench
        finally:
            await bench.server.stop(timedelta())


def asking(channel: grpc.aio.Channel, path: str = ASK) -> grpc.aio.UnaryUnaryMultiCallable[StringValue, StringValue]:
    """A method of a plain client."""
    return channel.unary_unary(path, StringValue.SerializeToString, StringValue.FromString)


def talking(channel: grpc.aio.Channel) -> grpc.aio.StreamStreamMultiCallable[StringValue, StringValue]:
    """The stream of a plain client."""
    return channel.stream_stream(TALK, StringValue.SerializeToString, StringValue.FromString)


async def ask(channel: Channel, words: str = "hello", *, path: str = ASK, timeout: timedelta = PATIENCE) -> str:  # noqa: ASYNC109  # it travels with the call
    """What our own channel hears."""
    return (await channel.unary(path, StringValue(value=words), StringValue, timeout=timeout)).value


async def heard(stream: grpc.aio.StreamStreamCall[StringValue, StringValue]) -> str:
    """The next that a plain client hears; empty when the stream has ended well."""
    response = await stream.read()
    return response.value if isinstance(response, StringValue) else ""


def trailing(error: grpc.aio.AioRpcError) -> dict[str, str | bytes]:
    """What came with a status."""
    return dict(cast("Iterable[tuple[str, str | bytes]]", error.trailing_metadata()))
