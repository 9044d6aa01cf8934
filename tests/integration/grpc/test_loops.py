"""Under a loop that is not asyncio's own (uvloop), door and portal have a loop in a thread; nothing else changes."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import grpc
import pytest

from istio_auth.authorize import is_id
from istio_auth.errors import ConfigurationError, NotAuthorized
from istio_auth.grpc import grpc_channel, loop_thread, serving
from istio_auth.sources.memory import MemorySource
from tests.fakes.waiting import until
from tests.integration.grpc.service import CHAT, CLIENT, OTHER, SERVER, WAIT, Talk, echo, holding, new_server, served

NAMES = {"istio-auth-door", "istio-auth-portal"}


@pytest.fixture(autouse=True)
def another_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop of these tests is taken for another's."""
    for module in (loop_thread, serving):
        monkeypatch.setattr(module, "is_own", lambda _loop: False)


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate()} & NAMES


async def test_calls_pass_and_the_threads_end_with_them(talk: Talk, theirs: MemorySource) -> None:
    async with (
        served(new_server("aio", talk)) as door,
        grpc_channel(theirs, is_id(SERVER), door.address) as channel,
    ):
        assert threads() == NAMES
        assert await echo(channel)(b"hello") == b"hello"
        chats = [channel.stream_stream(CHAT)(iter([b"a", b"b"])) for _ in range(20)]
        for chat in chats:
            assert [word async for word in chat] == [b"a", b"b"]
        assert set(talk.callers) == {CLIENT}
    assert threads() == set()


async def test_a_refusal_is_told(talk: Talk, theirs: MemorySource) -> None:
    async with (
        served(new_server("aio", talk), holding(OTHER)) as door,
        grpc_channel(theirs, is_id(SERVER), door.address) as channel,
    ):
        with pytest.raises(grpc.aio.AioRpcError, match=f"{OTHER} is refused: welcome is {SERVER}"):
            await echo(channel)(b"")
        assert isinstance(channel.last_error, NotAuthorized)


async def test_calls_in_flight_are_answered_at_the_end(talk: Talk, theirs: MemorySource) -> None:
    async with contextlib.AsyncExitStack() as stack:
        door = await stack.enter_async_context(served(server := new_server("aio", talk)))
        async with grpc_channel(theirs, is_id(SERVER), door.address) as channel:
            call = channel.unary_unary(WAIT)(b"answered")
            await until(lambda: talk.waiting)
            leaving = asyncio.create_task(stack.aclose())
            talk.let_go()
            assert await call == b"answered"
            await leaving
    with pytest.raises(ConfigurationError, match="was stopped before"):
        async with served(server):
            pass
    assert threads() == set()
