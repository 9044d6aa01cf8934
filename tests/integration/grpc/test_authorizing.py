"""An interceptor refuses call by call: the caller learns no more than that, and our log has the rest."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import cast

import grpc
import pytest

from istio_auth.authorize import Authorizer, any_id, is_id, one_of
from istio_auth.errors import ConfigurationError
from istio_auth.grpc import AuthorizingInterceptor, GrpcChannel, grpc_channel
from istio_auth.sources.memory import MemorySource
from istio_auth.spiffe_id import SpiffeID
from tests.integration.grpc.service import (
    CHAT,
    CLIENT,
    COUNT,
    ECHO,
    INTERCEPTORS,
    JOIN,
    KINDS,
    OTHER,
    SERVER,
    WAIT,
    Talk,
    echo,
    given_up,
    new_server,
    served,
)


async def answers(channel: GrpcChannel) -> list[object]:
    """What a method of each kind answers: its responses, or its status."""

    async def words() -> AsyncIterator[bytes]:
        yield b"a"

    async def unary(call: object) -> object:
        return await cast("grpc.aio.UnaryUnaryCall[bytes, bytes]", call)

    async def stream(call: object) -> object:
        return [response async for response in cast("AsyncIterator[bytes]", call)]

    found: list[object] = []
    for asking in (
        unary(channel.unary_unary(ECHO)(b"hello")),
        stream(channel.unary_stream(COUNT)(b"2")),
        unary(channel.stream_unary(JOIN)(words())),
        stream(channel.stream_stream(CHAT)(words())),
    ):
        try:
            found.append(await asking)
        except grpc.aio.AioRpcError as error:
            found.append((error.code(), error.details()))
    return found


@pytest.mark.parametrize("kind", KINDS)
async def test_methods_of_each_kind_are_refused_with_no_more_than_that(
    kind: str, talk: Talk, theirs: MemorySource, caplog: pytest.LogCaptureFixture
) -> None:
    welcome: list[SpiffeID] = []

    def authorize(peer: SpiffeID) -> None:
        one_of(*welcome)(peer)

    server = new_server(kind, talk, interceptors=[INTERCEPTORS[kind]({"/test.Talk/": authorize})])
    async with served(server) as door, grpc_channel(theirs, is_id(SERVER), door.address) as channel:
        refused = (grpc.StatusCode.PERMISSION_DENIED, "not authorized")
        assert await answers(channel) == [refused] * 4
        assert talk.callers == []
        for method in (ECHO, COUNT, JOIN, CHAT):
            reason = f"{CLIENT} is refused: welcome is nobody"
            assert f"call refused: method={method} peer={CLIENT} reason={reason}" in caplog.text
        welcome.append(CLIENT)
        assert await answers(channel) == [b"hello", [b"0", b"1"], b"a", [b"a"]]
        assert talk.callers == [CLIENT] * 4


@pytest.mark.parametrize("kind", KINDS)
async def test_rules_are_by_method_and_what_has_none_is_closed(kind: str, talk: Talk, theirs: MemorySource) -> None:
    rules: dict[str, Authorizer] = {ECHO: is_id(CLIENT), COUNT: is_id(OTHER)}
    server = new_server(kind, talk, interceptors=[INTERCEPTORS[kind](rules)])
    async with served(server) as door, grpc_channel(theirs, is_id(SERVER), door.address) as channel:
        refused = (grpc.StatusCode.PERMISSION_DENIED, "not authorized")
        assert await answers(channel) == [b"hello", refused, refused, refused]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/test.Talk/NoSuchMethod")(b"")
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("kind", KINDS)
async def test_an_authorizer_that_fails_has_not_said_yes(
    kind: str, talk: Talk, theirs: MemorySource, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_peer: SpiffeID) -> None:
        raise KeyError("secret of ours")

    server = new_server(kind, talk, interceptors=[INTERCEPTORS[kind]({"/": broken})])
    async with served(server) as door, grpc_channel(theirs, is_id(SERVER), door.address) as channel:
        assert await answers(channel) == [(grpc.StatusCode.PERMISSION_DENIED, "not authorized")] * 4
    assert talk.callers == []
    assert "deciding on it failed: KeyError('secret of ours')" in caplog.text


async def test_functions_of_a_server_of_asyncio_are_asked_for_too(theirs: MemorySource) -> None:
    """It runs them in threads."""

    def function(request: bytes, _context: grpc.ServicerContext) -> bytes:
        return request

    def generator(request: bytes, _context: grpc.ServicerContext) -> Iterator[bytes]:
        yield request

    async def writing(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        await context.write(request)

    methods = {
        "Function": grpc.unary_unary_rpc_method_handler(function),
        "Generator": grpc.unary_stream_rpc_method_handler(generator),
        "Writing": grpc.unary_stream_rpc_method_handler(cast("type", writing)),
    }
    welcome: list[SpiffeID] = []

    def authorize(peer: SpiffeID) -> None:
        one_of(*welcome)(peer)

    server = grpc.aio.server(interceptors=[AuthorizingInterceptor({"/": authorize})])
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Mixed", methods),))
    async with served(server) as door, grpc_channel(theirs, is_id(SERVER), door.address) as channel:

        async def ask() -> list[object]:
            stream = [channel.unary_stream(f"/test.Mixed/{name}")(b"x") for name in ("Generator", "Writing")]
            return [
                await channel.unary_unary("/test.Mixed/Function")(b"x"),
                *[[response async for response in call] for call in stream],
            ]

        for name, method in (
            ("Function", channel.unary_unary("/test.Mixed/Function")),
            ("Generator", channel.unary_stream("/test.Mixed/Generator")),
            ("Writing", channel.unary_stream("/test.Mixed/Writing")),
        ):
            call = method(b"x")
            assert await call.code() == grpc.StatusCode.PERMISSION_DENIED, name
            assert await call.details() == "not authorized"
        welcome.append(CLIENT)
        assert await ask() == [b"x", [b"x"], [b"x"]]


async def test_a_stream_that_is_given_up_ends_its_method_at_once(theirs: MemorySource) -> None:
    """The interceptor stands between gRPC and the method, and must not keep it."""
    ended = asyncio.Event()

    async def endless(request: bytes, _context: grpc.aio.ServicerContext[bytes, bytes]) -> AsyncIterator[bytes]:
        try:
            while True:
                yield request
                await asyncio.sleep(0)
        finally:
            ended.set()

    server = grpc.aio.server(interceptors=[AuthorizingInterceptor({"/": any_id()})])
    methods = {"Endless": grpc.unary_stream_rpc_method_handler(endless)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Endless", methods),))
    async with served(server) as door, grpc_channel(theirs, is_id(SERVER), door.address) as channel:
        call = channel.unary_stream("/test.Endless/Endless")(b"x")
        assert await call.read() == b"x"
        await given_up(call)
        async with asyncio.timeout(60):
            await ended.wait()


async def test_other_interceptors_and_options_have_their_place(talk: Talk, theirs: MemorySource) -> None:
    seen: list[str] = []

    class Naming(grpc.aio.UnaryUnaryClientInterceptor):  # type: ignore[type-arg]  # generic in its stubs alone
        async def intercept_unary_unary(self, continuation, details, request):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202  # gRPC's own
            seen.append(details.method)
            return await continuation(details, request)

    options = [("grpc.primary_user_agent", "shop/1.0"), ("grpc.default_authority", "orders.test")]
    async with (
        served(new_server("aio", talk)) as door,
        grpc_channel(theirs, is_id(SERVER), door.address, options=options, interceptors=[Naming()]) as channel,
    ):
        call = echo(channel)(b"hello")
        assert await call == b"hello"
        assert not await call.details()
        wrong = channel.unary_unary(WAIT)(b"", timeout=0.2)
        with pytest.raises(grpc.aio.AioRpcError):
            await wrong
    assert [str(method).removeprefix("b'").removesuffix("'") for method in seen] == [ECHO, WAIT]
    assert str(talk.metadata[0]["user-agent"]).startswith("shop/1.0 ")


@pytest.mark.parametrize("kind", KINDS)
def test_an_interceptor_says_at_once_that_a_rule_is_none(kind: str) -> None:
    with pytest.raises(ConfigurationError, match="names no methods"):
        INTERCEPTORS[kind]({"test.Talk": any_id()})
