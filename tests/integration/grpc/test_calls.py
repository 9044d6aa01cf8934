"""Calls of every kind through door and portal are as gRPC's own: metadata, deadlines, cancellation, large messages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import grpc
import pytest

from istio_auth.authorize import is_id
from istio_auth.grpc import GrpcChannel, blocking_grpc_channel, grpc_channel
from istio_auth.sources.memory import MemorySource
from tests.fakes.waiting import until
from tests.integration.grpc.service import (
    CHAT,
    CLIENT,
    COUNT,
    ECHO,
    JOIN,
    KINDS,
    SERVER,
    WAIT,
    Talk,
    echo,
    new_server,
    served,
)

MEGABYTE = 1 << 20
LARGE = [("grpc.max_receive_message_length", 32 * MEGABYTE), ("grpc.max_send_message_length", 32 * MEGABYTE)]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Of the server."""
    return str(request.param)


@pytest.fixture
async def channel(kind: str, talk: Talk, theirs: MemorySource) -> AsyncIterator[GrpcChannel]:
    """To a server of either kind."""
    async with (
        served(new_server(kind, talk, options=LARGE)) as door,
        grpc_channel(theirs, is_id(SERVER), door.address, options=LARGE) as channel,
    ):
        yield channel


async def test_a_method_of_each_kind_knows_its_caller(channel: GrpcChannel, talk: Talk) -> None:
    async def words() -> AsyncIterator[bytes]:
        for word in (b"a", b"b"):
            yield word

    generated = channel.unary_unary(  # as the code of a stub that was generated
        ECHO, request_serializer=str.encode, response_deserializer=bytes.decode, _registered_method=True
    )
    assert await generated("hello") == "hello"
    assert [number async for number in channel.unary_stream(COUNT)(b"3")] == [b"0", b"1", b"2"]
    assert await channel.stream_unary(JOIN)(words()) == b"a,b"
    assert [word async for word in channel.stream_stream(CHAT)(words())] == [b"a", b"b"]
    assert talk.callers == [CLIENT] * 4
    assert {chain[0].serial_number for chain in talk.chains} == {talk.chains[0][0].serial_number}
    assert isinstance(channel, grpc.aio.Channel)


async def test_streams_are_read_and_written_one_by_one(channel: GrpcChannel) -> None:
    call = channel.stream_stream(CHAT)(None)
    for word in (b"a", b"b"):
        await call.write(word)
        assert await call.read() == word
    await call.done_writing()
    assert not await call.read()  # gRPC's mark of the end
    assert await call.code() == grpc.StatusCode.OK
    joining = channel.stream_unary(JOIN)(None)
    await joining.write(b"x")
    await joining.done_writing()
    assert await joining == b"x"


async def test_metadata_goes_both_ways_and_names_the_server(channel: GrpcChannel, talk: Talk) -> None:
    call = echo(channel)(b"", metadata=(("colour", "blue"), ("raw-bin", b"\x00\xff")))
    assert await call == b""
    assert (talk.metadata[0]["colour"], talk.metadata[0]["raw-bin"]) == ("blue", b"\x00\xff")
    assert dict(await call.trailing_metadata())["said"] == "all"
    assert await call.code() == grpc.StatusCode.OK
    assert not await call.details()


async def test_a_deadline_is_known_to_the_method_and_ends_the_call(channel: GrpcChannel, talk: Talk) -> None:
    await echo(channel)(b"", timeout=3000)
    assert talk.remaining[0] is not None
    assert 2900 < talk.remaining[0] <= 3000
    seconds = 0.3
    while len(talk.callers) == 1:  # on a busy machine the time may be over before the method has begun
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary(WAIT)(b"", timeout=seconds)
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        seconds *= 2
    await until(lambda: talk.ended)
    assert set(talk.ended) == {"cancelled"}


async def test_a_call_that_is_given_up_ends_at_the_server(channel: GrpcChannel, talk: Talk) -> None:
    call = channel.unary_unary(WAIT)(b"")
    await until(lambda: talk.waiting)
    assert call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await until(lambda: talk.ended)
    assert talk.ended == ["cancelled"]
    assert await channel.unary_unary(ECHO)(b"still here") == b"still here"


async def test_a_task_that_waits_for_a_call_can_be_cancelled(channel: GrpcChannel, talk: Talk) -> None:
    async def ask() -> object:
        return await channel.unary_unary(WAIT)(b"")

    task = asyncio.create_task(ask())
    await until(lambda: talk.waiting)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: talk.ended)
    assert talk.ended == ["cancelled"]


async def test_large_messages_arrive_whole(channel: GrpcChannel) -> None:
    large = bytes(range(256)) * (24 * MEGABYTE // 256)
    assert await echo(channel)(large) == large


async def test_a_hundred_streams_at_once_stay_apart(talk: Talk, theirs: MemorySource) -> None:
    async with (
        served(new_server("aio", talk)) as door,
        grpc_channel(theirs, is_id(SERVER), door.address) as channel,
    ):
        calls = [channel.stream_stream(CHAT)(None) for _ in range(100)]
        for turn in range(3):
            words = [f"{turn} {number}".encode() for number in range(100)]
            await asyncio.gather(*(call.write(word) for call, word in zip(calls, words, strict=True)))
            assert await asyncio.gather(*(call.read() for call in calls)) == words
        await asyncio.gather(*(call.done_writing() for call in calls))
        assert {await call.code() for call in calls} == {grpc.StatusCode.OK}
        assert door.connections == 1
        assert len(talk.callers) == 100


@pytest.mark.parametrize("kind", KINDS)
async def test_a_blocking_channel_calls_methods_of_each_kind(kind: str, talk: Talk, theirs: MemorySource) -> None:
    def ask(address: str) -> None:
        with blocking_grpc_channel(theirs, is_id(SERVER), address) as channel:
            assert isinstance(channel, grpc.Channel)
            method = channel.unary_unary(ECHO)
            assert method(b"hello", timeout=60) == b"hello"
            response, call = method.with_call(b"hello")
            assert (response, call.code()) == (b"hello", grpc.StatusCode.OK)
            future = method.future(b"later")
            assert isinstance(future, grpc.Future)
            assert (future.result(60), future.exception(), future.details()) == (b"later", None, "")
            assert list(channel.unary_stream(COUNT)(b"3")) == [b"0", b"1", b"2"]
            assert channel.stream_unary(JOIN)(iter([b"a", b"b"])) == b"a,b"
            chat = channel.stream_stream(CHAT)(iter([b"a", b"b"]))
            assert list(chat) == [b"a", b"b"]
            assert dict(channel.unary_unary(ECHO).with_call(b"")[1].trailing_metadata())["said"] == "all"

    async with served(new_server(kind, talk)) as door:
        await asyncio.to_thread(ask, door.address)
        await until(lambda: not door.connections)
    assert set(talk.callers) == {CLIENT}


async def test_a_blocking_call_has_its_deadline_and_can_be_given_up(talk: Talk, theirs: MemorySource) -> None:
    def ask(address: str) -> Iterator[grpc.StatusCode]:
        with blocking_grpc_channel(theirs, is_id(SERVER), address) as channel:
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(WAIT)(b"", timeout=0.3)
            yield caught.value.code()
            future = channel.unary_unary(WAIT).future(b"")
            assert future.cancel()  # type: ignore[no-untyped-call]  # in the stubs
            yield future.code()

    async with served(new_server("aio", talk)) as door:
        codes = await asyncio.to_thread(lambda: list(ask(door.address)))
    assert codes == [grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED]
