"""What a server takes on: sizes, times, calls and streams at once, the age of a connection."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue

from istio_auth.errors import Code, Exhausted, MalformedError, NotReady
from istio_auth.rpc.method import Call
from istio_auth.rpc.server import Limits
from tests.fakes.authority import FakeAuthority
from tests.fakes.waiting import until
from tests.integration.rpc.bench import (
    ASK,
    PATIENCE,
    SMALL,
    SMALL_BYTES,
    TALK,
    Bench,
    ask,
    asking,
    echo,
    heard,
    serving,
    talking,
    trailing,
)

HINT = timedelta(milliseconds=1500)
BOTH = pytest.mark.parametrize("way", ["tls", "unix"])


class Held:
    """Methods that are not done before a test lets them: `began` and `ended` count what came and went."""

    def __init__(self, bench: Bench) -> None:
        self.began, self.ended, self.cancelled = 0, 0, 0
        self.let = asyncio.Event()
        bench.answer, bench.talk = self.answer, self.talk

    async def answer(self, request: StringValue, _call: Call) -> StringValue:
        self.began += 1
        try:
            await self.let.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.ended += 1
        return request

    async def talk(self, _requests: AsyncIterator[StringValue], call: Call) -> AsyncGenerator[StringValue]:
        yield StringValue(value="first")
        yield await self.answer(StringValue(value="last"), call)


async def held(*_said: StringValue) -> AsyncGenerator[StringValue]:
    """Requests that never end."""
    for said in _said:
        yield said
    await asyncio.Event().wait()


async def to_its_end(stream: grpc.aio.StreamStreamCall[StringValue, StringValue]) -> None:
    """Hear a stream out."""
    async with asyncio.timeout(60):
        while await heard(stream):
            pass


class TestSizes:
    @BOTH
    async def test_what_does_not_parse_is_malformed(self, bench: Bench, way: str) -> None:
        async with bench.plain(way) as channel:
            for call in (
                channel.unary_unary(ASK, None, None)(b"\xff\xff", timeout=60),
                channel.stream_stream(TALK, None, None)(iter([b"\xff\xff"]), timeout=60).read(),
            ):
                with pytest.raises(grpc.aio.AioRpcError) as failed:
                    await call
                assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
                assert failed.value.details() == "the request does not parse"
            assert (await asking(channel)(StringValue(value="x"))).value == "x"

    @BOTH
    async def test_a_method_has_a_limit_of_its_own_to_the_byte(self, bench: Bench, way: str) -> None:
        most = "x" * (SMALL_BYTES - 2)  # and two bytes of a tag and a length
        async with bench.ours(way) as channel:
            assert await ask(channel, most, path=SMALL) == most
            with pytest.raises(MalformedError) as failed:
                await ask(channel, most + "x", path=SMALL)
            assert "101 bytes is larger than the 100 allowed" in str(failed.value)
            assert await ask(channel, most + "x") == most + "x"

    async def test_the_server_has_one_for_the_others(self, authority: FakeAuthority, tmp_path: Path) -> None:
        async with serving(authority, tmp_path, limits=Limits(request_bytes=1000)) as bench, bench.ours() as channel:
            assert await ask(channel, "x" * 900)
            for size in (1001, 1 << 20, 8 << 20):  # beyond the limits of gRPC, it is gRPC that refuses
                with pytest.raises((MalformedError, Exhausted)):
                    await ask(channel, "x" * size)
            assert await ask(channel, "x" * 900)

    async def test_an_answer_may_be_as_large_as_the_caller_allows(self, bench: Bench) -> None:
        async def answer(_request: StringValue, _call: Call) -> StringValue:
            return StringValue(value="x" * (3 << 20))

        bench.answer = answer
        async with bench.ours() as channel:
            assert len(await ask(channel)) == 3 << 20


class TestTimes:
    @BOTH
    async def test_a_caller_that_gives_up_is_not_answered_for_ever(self, bench: Bench, way: str) -> None:
        async with bench.ours(way) as channel:
            method, allowed = Held(bench), timedelta(milliseconds=300)
            while not method.began:  # on a busy machine the time may be over before the call has come
                with pytest.raises(NotReady):
                    await ask(channel, timeout=allowed)
                allowed *= 2
            await until(lambda: method.ended == method.began)
            method.let.set()
            assert await ask(channel) == "hello"

    async def test_the_method_knows_how_long_it_has(self, bench: Bench) -> None:
        told: list[float | None] = []

        async def answer(request: StringValue, call: Call) -> StringValue:
            told.append(call.time_remaining)
            return request

        bench.answer = answer
        async with bench.plain() as channel:
            await asking(channel)(StringValue(), timeout=1000)
            await asking(channel)(StringValue())
        assert told[0] is not None
        assert 900 < told[0] <= 1000
        assert told[1] is None

    @pytest.mark.parametrize("patience", [None, 60])
    async def test_whoever_has_all_the_time_hears_of_ours(
        self, authority: FakeAuthority, tmp_path: Path, patience: float | None
    ) -> None:
        limits = Limits(deadline=timedelta(milliseconds=100), retry_after=HINT)
        async with serving(authority, tmp_path, limits=limits) as bench, bench.plain() as channel:
            method = Held(bench)
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await asking(channel)(StringValue(), timeout=patience)
            assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
            assert trailing(failed.value) == {"grpc-retry-pushback-ms": "1500"}
            assert (method.began, method.cancelled) == (1, 1)
            method.let.set()
            assert (await asking(channel)(StringValue(value="x"))).value == "x"


class TestAtOnce:
    @BOTH
    async def test_more_calls_than_there_is_room_for_are_asked_to_come_again(
        self, authority: FakeAuthority, tmp_path: Path, way: str
    ) -> None:
        limits = Limits(in_flight=2, retry_after=HINT)
        async with serving(authority, tmp_path, limits=limits) as bench, bench.ours(way) as channel:
            method = Held(bench)
            taken = [asyncio.create_task(ask(channel, str(number))) for number in range(2)]
            await until(lambda: method.began == 2)
            with pytest.raises(Exhausted) as failed:
                await ask(channel)
            assert failed.value.retry_after == HINT
            assert (ASK, Code.EXHAUSTED) in bench.counted
            method.let.set()
            assert await asyncio.gather(*taken) == ["0", "1"]
            assert await ask(channel) == "hello"

    async def test_who_is_refused_for_that_has_one_warning_a_minute(
        self, authority: FakeAuthority, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        @asynccontextmanager
        async def guard(_call: Call) -> AsyncIterator[Callable[[], None]]:
            yield lambda: None

        limits = Limits(in_flight=1)
        async with serving(authority, tmp_path, limits=limits, guard=guard) as bench, bench.ours("unix") as channel:
            method = Held(bench)
            taken = asyncio.create_task(ask(channel))
            await until(lambda: method.began == 1)
            for _ in range(3):
                with pytest.raises(Exhausted):
                    await ask(channel)
            method.let.set()
            await taken
        (told,) = [record for record in caplog.records if "call refused" in record.getMessage()]
        assert told.levelname == "WARNING"
        assert f"uid {os.getuid()}" in told.getMessage()
        assert "1 calls are in flight" in told.getMessage()

    async def test_a_call_that_its_caller_cancels_makes_room(self, authority: FakeAuthority, tmp_path: Path) -> None:
        async with serving(authority, tmp_path, limits=Limits(in_flight=1)) as bench, bench.plain() as channel:
            method = Held(bench)
            call = asking(channel)(StringValue())
            await until(lambda: method.began == 1)
            call.cancel()
            await until(lambda: method.cancelled == 1)
            method.let.set()
            assert (await asking(channel)(StringValue(value="x"))).value == "x"

    @BOTH
    async def test_more_streams_than_there_is_room_for_are_asked_to_come_again(
        self, authority: FakeAuthority, tmp_path: Path, way: str
    ) -> None:
        limits = Limits(streams=1, retry_after=HINT)
        async with serving(authority, tmp_path, limits=limits) as bench, bench.plain(way) as channel:
            method = Held(bench)
            first = talking(channel)(held())
            assert await heard(first) == "first"
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await talking(channel)(held()).read()
            assert failed.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert trailing(failed.value) == {"grpc-retry-pushback-ms": "1500"}
            method.let.set()
            assert await heard(first) == "last"
            assert await heard(first) == ""
            again = talking(channel)(held())
            assert await heard(again) == "first"

    async def test_a_stream_that_its_caller_cancels_makes_room(self, authority: FakeAuthority, tmp_path: Path) -> None:
        async with serving(authority, tmp_path, limits=Limits(streams=1)) as bench, bench.plain() as channel:
            method = Held(bench)
            first = talking(channel)(held())
            await first.read()
            await until(lambda: method.began == 1)
            first.cancel()
            await until(lambda: method.cancelled == 1)
            again = talking(channel)(held())
            assert await heard(again) == "first"

    async def test_one_connection_has_so_many_calls_and_the_others_wait(
        self, authority: FakeAuthority, tmp_path: Path
    ) -> None:
        limits = Limits(streams_per_connection=2)
        async with (
            serving(authority, tmp_path, limits=limits) as bench,
            bench.plain() as crowded,
            bench.plain() as other,
        ):
            method = Held(bench)
            calls = [asking(crowded)(StringValue(value=str(number))) for number in range(3)]
            await until(lambda: method.began == 2)
            theirs = asking(other)(StringValue(value="other"))
            await until(lambda: method.began == 3)
            method.let.set()
            assert (await theirs).value == "other"
            assert [(await call).value for call in calls] == ["0", "1", "2"]
            assert bench.door.accepted == 2


class TestAge:
    async def test_callers_connect_anew_and_lose_no_call(self, authority: FakeAuthority, tmp_path: Path) -> None:
        limits = Limits(connection_age=timedelta(milliseconds=150))
        async with serving(authority, tmp_path, limits=limits) as bench, bench.ours() as channel:
            async with asyncio.timeout(60):
                while bench.door.accepted < 4:
                    assert await ask(channel) == "hello"

    async def test_a_call_that_takes_longer_is_finished(self, authority: FakeAuthority, tmp_path: Path) -> None:
        limits = Limits(connection_age=timedelta(milliseconds=100), connection_grace=PATIENCE)
        async with serving(authority, tmp_path, limits=limits) as bench, bench.plain() as channel:
            method = Held(bench)
            call = asking(channel)(StringValue(value="x"))
            await until(lambda: method.began == 1)
            bench.answer = echo
            async with asyncio.timeout(60):
                while bench.door.accepted < 4:  # a connection that is too old takes no more calls
                    with suppress(grpc.aio.AioRpcError):  # this channel tries nothing twice
                        await asking(channel)(StringValue(value="y"))
            method.let.set()
            assert (await call).value == "x"

    async def test_a_stream_that_takes_too_long_is_ended(self, authority: FakeAuthority, tmp_path: Path) -> None:
        limits = Limits(connection_age=timedelta(milliseconds=100), connection_grace=timedelta(milliseconds=600))
        async with serving(authority, tmp_path, limits=limits) as bench, bench.plain() as channel:
            method = Held(bench)
            stream = talking(channel)(held())
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await to_its_end(stream)
            assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
            await until(lambda: method.cancelled == method.began)
