"""What a caller hears of an error: the status of its code, its public text, and nothing else."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from datetime import timedelta

import grpc
import pytest
import structlog
from google.protobuf.wrappers_pb2 import StringValue

from istio_auth.daemon.logging import Format, Level, configure
from istio_auth.errors import (
    Code,
    ConflictError,
    Exhausted,
    Fault,
    IstioAuthError,
    MalformedError,
    MissingError,
    NotAuthenticated,
    NotAuthorized,
    NotReady,
    UnknownMethod,
    VerificationError,
)
from istio_auth.rpc.channel import Channel
from istio_auth.rpc.method import Call
from tests.integration.rpc.bench import ASK, PATIENCE, TALK, Bench, ask, asking, heard, talking, trailing

SECRET = "the key is under the mat"
TABLE = {
    MalformedError: grpc.StatusCode.INVALID_ARGUMENT,
    NotAuthenticated: grpc.StatusCode.UNAUTHENTICATED,
    NotAuthorized: grpc.StatusCode.PERMISSION_DENIED,
    MissingError: grpc.StatusCode.NOT_FOUND,
    UnknownMethod: grpc.StatusCode.UNIMPLEMENTED,
    ConflictError: grpc.StatusCode.ABORTED,
    NotReady: grpc.StatusCode.UNAVAILABLE,
    Exhausted: grpc.StatusCode.RESOURCE_EXHAUSTED,
    IstioAuthError: grpc.StatusCode.INTERNAL,
}


@pytest.fixture
def logs() -> Iterator[io.StringIO]:
    """What the process of a daemon would log."""
    root, stream = logging.getLogger(), io.StringIO()
    handlers, level = root.handlers[:], root.level
    configure(Level.INFO, Format.JSON, stream=stream)
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()


def raising(error: BaseException, bench: Bench) -> None:
    """Have every method of the bench fail with this."""

    async def answer(_request: StringValue, _call: Call) -> StringValue:
        raise error

    async def talk(requests: AsyncIterator[StringValue], _call: Call) -> AsyncGenerator[StringValue]:
        yield StringValue(value="first")
        async for _ in requests:
            pass  # a client that is still sending when its call ends may hear of that instead
        raise error

    bench.answer, bench.talk = answer, talk


async def failure(channel: grpc.aio.Channel, path: str) -> grpc.aio.AioRpcError:
    """What a plain client hears of a call that fails."""
    if path == ASK:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await asking(channel)(StringValue(), timeout=60)
        return failed.value
    stream = talking(channel)(iter([StringValue()]), timeout=60)
    assert await heard(stream) == "first"
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await heard(stream)
    return failed.value


def test_the_table_knows_every_code() -> None:
    assert {kind.code for kind in TABLE} == set(Code)


@pytest.mark.parametrize("path", [ASK, TALK])
@pytest.mark.parametrize("way", ["tls", "unix"])
async def test_every_code_has_its_status_and_its_public_text_alone(bench: Bench, way: str, path: str) -> None:
    async with bench.plain(way) as channel:
        for kind, status in TABLE.items():
            raising(kind(SECRET), bench)
            heard = await failure(channel, path)
            assert (heard.code(), heard.details()) == (status, kind.code.value)
            raising(kind(SECRET, public="ring twice", retry_after=timedelta(seconds=2.5)), bench)
            heard = await failure(channel, path)
            assert (heard.code(), heard.details()) == (status, "ring twice")
            assert trailing(heard) == {"grpc-retry-pushback-ms": "2500"}
    assert [code for _, code in bench.counted] == [kind.code for kind in TABLE for _ in range(2)]


@pytest.mark.parametrize("way", ["tls", "unix"])
async def test_our_own_channel_makes_the_same_error_of_it_again(bench: Bench, way: str) -> None:
    async with bench.ours(way) as channel:
        for kind in TABLE:
            raising(kind(SECRET, public="ring twice", retry_after=timedelta(seconds=2)), bench)
            with pytest.raises(IstioAuthError) as failed:
                await ask(channel)
            assert (type(failed.value), failed.value.retry_after) == (kind, timedelta(seconds=2))
            assert "ring twice" in str(failed.value)
            with pytest.raises(kind):
                await talk_twice(channel)
        assert SECRET not in str(failed.value)


async def talk_twice(channel: Channel) -> None:
    """Hear what a stream of our own channel says first, and what next."""

    async def said() -> AsyncGenerator[StringValue]:
        yield StringValue()

    answers = channel.stream(TALK, said(), StringValue)
    assert (await anext(answers)).value == "first"
    await anext(answers)


async def test_a_refused_certificate_is_told_without_the_reason(bench: Bench) -> None:
    raising(VerificationError(Fault.EXPIRED, SECRET), bench)
    async with bench.plain() as channel:
        heard = await failure(channel, ASK)
    assert (heard.code(), heard.details()) == (grpc.StatusCode.UNAUTHENTICATED, "certificate refused")


@pytest.mark.parametrize("path", [ASK, TALK])
async def test_any_other_exception_is_internal_and_its_request_id_finds_it_in_the_log(
    bench: Bench, logs: io.StringIO, path: str
) -> None:
    raising(ValueError(SECRET), bench)
    async with bench.plain() as channel:
        heard = await failure(channel, path)
    assert heard.code() is grpc.StatusCode.INTERNAL
    named = re.fullmatch(r"internal error \(request ([0-9a-f]{16})\)", heard.details() or "")
    assert named
    found = [line for line in map(json.loads, logs.getvalue().splitlines()) if line.get("request_id") == named[1]]
    assert any(SECRET in line.get("exception", "") and path in line["event"] for line in found)
    assert bench.counted == [(path, Code.INTERNAL)]


async def test_a_refusal_is_logged_in_full_with_who_was_refused(bench: Bench, logs: io.StringIO) -> None:
    raising(NotAuthorized(SECRET), bench)
    async with bench.plain() as channel:
        await failure(channel, ASK)
    (line,) = [line for line in map(json.loads, logs.getvalue().splitlines()) if "call refused" in line["event"]]
    assert SECRET in line["event"]
    assert "spiffe://cluster.local/client" in line["event"]
    assert line["request_id"]


async def test_what_a_method_awaited_being_cancelled_is_a_failure_and_not_silence(bench: Bench) -> None:
    async def answer(_request: StringValue, _call: Call) -> StringValue:
        lost: asyncio.Future[StringValue] = asyncio.get_running_loop().create_future()
        lost.cancel()
        return await lost

    bench.answer = answer
    async with bench.plain() as channel:
        heard = await failure(channel, ASK)
    assert heard.code() is grpc.StatusCode.INTERNAL


async def test_a_method_that_is_not_there_is_told_apart_from_a_thing_that_is_not_there(bench: Bench) -> None:
    async with bench.plain() as plain, bench.ours() as ours:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await asking(plain, "/test.Bench/Unheard")(StringValue())
        assert failed.value.code() is grpc.StatusCode.UNIMPLEMENTED
        with pytest.raises(UnknownMethod):
            await ask(ours, path="/test.Unheard/Ask")
        assert await ask(ours) == "hello"


@pytest.mark.parametrize("hint", ["never", "-1", "99999999999999", "1.5"])
async def test_a_hint_of_a_strange_server_makes_nobody_wait_for_ever(bench: Bench, hint: str) -> None:
    async def refuse(_data: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        await context.abort(grpc.StatusCode.UNAVAILABLE, "", (("grpc-retry-pushback-ms", hint),))
        raise AssertionError

    server = grpc.aio.server()
    handlers = {"Ask": grpc.unary_unary_rpc_method_handler(refuse)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Bench", handlers),))
    path = f"unix:{bench.folder}/strange.sock"
    server.add_insecure_port(path)
    await server.start()
    async with Channel(path) as channel:
        with pytest.raises(NotReady) as failed:
            await ask(channel, timeout=PATIENCE)
    await server.stop(0)
    assert failed.value.retry_after in {None, timedelta(days=1)}
