"""From entering to leaving: where it listens, what it does not take, and that nothing is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import grpc
import pytest

from istio_auth.authorize import is_id
from istio_auth.door import DoorLimits
from istio_auth.errors import ConfigurationError, Exhausted, NotReady
from istio_auth.grpc import blocking_grpc_channel, grpc_channel, peers, serving
from istio_auth.sources.memory import MemorySource
from tests.fakes.waiting import until
from tests.integration.grpc.service import KINDS, SERVER, WAIT, Refusals, Talk, echo, new_server, served

pytestmark = pytest.mark.parametrize("kind", KINDS)


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost"])
async def test_it_listens_where_it_is_told_and_tells_where(
    kind: str, host: str, talk: Talk, theirs: MemorySource
) -> None:
    async with served(new_server(kind, talk), address=f"{host}:0") as door:
        assert door.port > 0
        assert door.address == (f"[{door.host}]:{door.port}" if ":" in door.host else f"{door.host}:{door.port}")
        async with grpc_channel(theirs, is_id(SERVER), f"{host}:{door.port}") as channel:
            assert await echo(channel)(b"hello") == b"hello"
        assert (door.accepted, door.refused) == (1, 0)


async def test_a_server_that_was_started_before_is_told_apart(
    kind: str, talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "_FIRST_WORD_SECONDS", 0.2)
    server = new_server(kind, talk)
    if isinstance(server, grpc.aio.Server):
        await server.start()
    else:
        server.start()
    with pytest.raises(ConfigurationError, match="was started before: hand it to serve_grpc unused"):
        async with served(server):
            pass
    await stop(server)


async def test_a_server_that_was_stopped_before_is_told_apart(kind: str, talk: Talk) -> None:
    """GRPC would end the whole process."""
    server = new_server(kind, talk)
    async with served(server):
        pass
    if not isinstance(server, grpc.aio.Server):
        assert server.wait_for_termination(0) is False  # it has ended when serve_grpc has
    with pytest.raises(ConfigurationError, match="was stopped before"):
        async with served(server):
            pass


async def test_a_second_start_and_an_early_stop_do_no_harm(kind: str, talk: Talk, theirs: MemorySource) -> None:
    server = new_server(kind, talk)
    async with served(server) as door:
        if isinstance(server, grpc.aio.Server):
            await server.start()
        async with grpc_channel(theirs, is_id(SERVER), door.address) as channel:
            assert await echo(channel)(b"hello") == b"hello"
        await stop(server)


async def test_a_port_that_is_taken_is_told_and_another_can_be_taken(
    kind: str, talk: Talk, theirs: MemorySource
) -> None:
    server = new_server(kind, talk)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(NotReady, match="Address already in use"):
        async with served(server, address=f"127.0.0.1:{taken.getsockname()[1]}"):
            pass
    async with served(server) as door, grpc_channel(theirs, is_id(SERVER), door.address) as channel:
        assert await echo(channel)(b"hello") == b"hello"


@pytest.mark.parametrize("address", ["127.0.0.1", "nonsense", "127.0.0.1:70000", "192.0.2.1:0"])
async def test_an_address_that_can_not_be_had_is_told(kind: str, address: str, talk: Talk) -> None:
    with pytest.raises(ConfigurationError):
        async with served(new_server(kind, talk), address=address):
            pass


async def test_calls_in_flight_are_answered_and_nobody_new_is_taken(
    kind: str, talk: Talk, theirs: MemorySource
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        door = await stack.enter_async_context(served(new_server(kind, talk), grace=timedelta(seconds=60)))
        async with grpc_channel(theirs, is_id(SERVER), door.address) as channel:
            call = channel.unary_unary(WAIT)(b"answered")
            await until(lambda: talk.waiting)
            leaving = asyncio.create_task(stack.aclose())
            await until(lambda: not listens(door.port))
            assert not leaving.done()
            talk.let_go()
            assert await call == b"answered"
            await leaving
            assert talk.ended == ["answered"]
            await until(lambda: channel.get_state() != grpc.ChannelConnectivity.READY)
            with pytest.raises(grpc.aio.AioRpcError, match="can not be reached"):
                await echo(channel)(b"")


async def test_when_the_grace_is_over_they_are_ended(kind: str, talk: Talk, theirs: MemorySource) -> None:
    async with contextlib.AsyncExitStack() as stack:
        door = await stack.enter_async_context(served(new_server(kind, talk), grace=timedelta(seconds=0.2)))
        async with grpc_channel(theirs, is_id(SERVER), door.address) as channel:
            call = channel.unary_unary(WAIT)(b"")
            await until(lambda: talk.waiting)
            await stack.aclose()
            with pytest.raises(grpc.aio.AioRpcError):
                await call
            await until(lambda: talk.ended)
            assert talk.ended == ["cancelled"]


async def test_its_limits_are_the_doors(kind: str, talk: Talk, theirs: MemorySource, refusals: Refusals) -> None:
    server = new_server(kind, talk)
    async with (
        served(server, limits=DoorLimits(connections=1), on_refused=refusals) as door,
        grpc_channel(theirs, is_id(SERVER), door.address) as first,
        grpc_channel(theirs, is_id(SERVER), door.address) as second,
    ):
        await echo(first)(b"")
        with pytest.raises(grpc.aio.AioRpcError):
            await echo(second)(b"")
        await until(lambda: refusals.reasons)
        assert isinstance(refusals.reasons[0], Exhausted)


@pytest.fixture
def folders(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where private folders are made; with a short name, for sockets."""
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


async def test_two_hundred_connections_leave_no_descriptor_and_no_folder(
    kind: str, talk: Talk, theirs: MemorySource, folders: Path
) -> None:
    def come_and_go(address: str, times: int) -> None:
        for _ in range(times):
            with blocking_grpc_channel(theirs, is_id(SERVER), address) as channel:
                assert channel.unary_unary("/test.Talk/Echo")(b"hello") == b"hello"

    async with served(new_server(kind, talk)) as door:
        await asyncio.to_thread(come_and_go, door.address, 5)  # what gRPC makes once
        await until(lambda: not door.connections)
        before = descriptors()
        await asyncio.to_thread(come_and_go, door.address, 100)
        for _ in range(100):
            async with grpc_channel(theirs, is_id(SERVER), door.address) as channel:
                assert await echo(channel)(b"hello") == b"hello"
        await until(lambda: not door.connections)
        await until(lambda: descriptors() <= before + 2)
        assert door.accepted == 205
    assert not private_folders(folders)
    assert not peers._open


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


async def stop(server: grpc.aio.Server | grpc.Server) -> None:
    if isinstance(server, grpc.aio.Server):
        await server.stop(None)
    else:
        server.stop(None).wait()


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def private_folders(parent: Path) -> list[Path]:
    return list(parent.iterdir())
