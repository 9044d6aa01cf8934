"""How a server ends: nothing new, streams told to come again, calls in flight finished in their time."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue

from istio_auth.errors import Code, NotReady
from istio_auth.rpc.method import Call
from tests.fakes.waiting import until
from tests.integration.rpc.bench import ASK, TALK, Bench, ask, asking, heard, talking, trailing
from tests.integration.rpc.test_limits import Held, held

GRACE = timedelta(seconds=60)


@pytest.mark.parametrize("way", ["tls", "unix"])
async def test_streams_end_unavailable_at_once_and_calls_in_flight_are_finished(bench: Bench, way: str) -> None:
    method = Held(bench)
    async with bench.plain(way) as channel:
        call, stream = asking(channel)(StringValue(value="x")), talking(channel)(held())
        assert await heard(stream) == "first"
        await until(lambda: method.began == 2)
        stopping = asyncio.create_task(bench.server.stop(GRACE))
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await stream.read()
        assert (failed.value.code(), failed.value.details()) == (grpc.StatusCode.UNAVAILABLE, "the server is stopping")
        assert trailing(failed.value) == {"grpc-retry-pushback-ms": "1000"}
        assert not stopping.done()
        method.let.set()
        assert (await call).value == "x"
        await stopping
    assert sorted(bench.counted, key=str) == [(ASK, None), (TALK, Code.NOT_READY)]


async def test_a_stream_that_waits_for_its_caller_ends_too(bench: Bench) -> None:
    async with bench.plain() as channel:
        stream = talking(channel)(held(StringValue(value="x")))
        assert await heard(stream) == "x"
        await bench.server.stop(GRACE)
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await stream.read()
    assert failed.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_that_it_stops_is_no_line_for_each_of_its_streams(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        async with bench.plain() as channel:
            streams = [talking(channel)(held(StringValue(value="x"))) for _ in range(3)]
            for stream in streams:
                assert await heard(stream) == "x"
            await bench.server.stop(GRACE)
            for stream in streams:
                with pytest.raises(grpc.aio.AioRpcError):
                    await stream.read()
    assert [record.message for record in caplog.records if "call refused" in record.message] == []


async def test_what_takes_longer_than_its_grace_is_given_up(bench: Bench) -> None:
    method = Held(bench)
    async with bench.ours() as channel:
        call = asyncio.create_task(ask(channel))
        await until(lambda: method.began == 1)
        await bench.server.stop(timedelta(milliseconds=100))
        with pytest.raises(NotReady):
            await call
        await until(lambda: method.cancelled == 1)


async def test_nothing_new_is_taken_in(bench: Bench) -> None:
    method = Held(bench)
    async with bench.ours() as channel:
        call = asyncio.create_task(ask(channel))
        await until(lambda: method.began == 1)
        stopping = asyncio.create_task(bench.server.stop(GRACE))
        await asyncio.sleep(0)
        with pytest.raises(NotReady, match="the server is stopping"):
            await ask(channel)
        assert method.began == 1
        method.let.set()
        assert await call == "hello"
        await stopping


async def test_callers_that_grpc_has_not_let_through_yet_are_told_to_come_again_and_not_cancelled(bench: Bench) -> None:
    begun = asyncio.Event()

    async def answer(request: StringValue, _call: Call) -> StringValue:
        begun.set()
        return request

    bench.answer = answer
    async with bench.plain() as channel:
        calls = [asking(channel)(StringValue(value="x")) for _ in range(100)]
        await begun.wait()
        await bench.server.stop(GRACE)
        codes = [await call.code() for call in calls]
    assert grpc.StatusCode.OK in codes
    assert set(codes) <= {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}
