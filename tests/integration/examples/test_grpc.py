"""The examples for gRPC: each server with each client, in one process and as programs, before and after a new root."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import grpc
import pytest

from docs.examples import grpc_blocking_client, grpc_blocking_server, grpc_client, grpc_server
from istio_auth.authorize import any_id, is_id
from istio_auth.grpc import blocking_grpc_channel, grpc_channel, serve_grpc
from istio_auth.x509_source import X509Source
from tests.fakes.waiting import until
from tests.integration.examples.test_programs import EXAMPLES, Setup, follows
from tests.integration.examples.world import CLIENT, OTHER, SERVER, World

Ask = Callable[[], Awaitable[str]]
GREETING = f"{CLIENT} says hello"
SERVERS, CLIENTS = ("grpc_server", "grpc_blocking_server"), ("grpc_client", "grpc_blocking_client")
AT_ONCE = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 50)]


@asynccontextmanager
async def serving(name: str, source: X509Source) -> AsyncIterator[str]:
    """One of the servers, on a free port."""
    if name == "grpc_server":
        async with serve_grpc(grpc_server.server(), source, any_id(), "127.0.0.1:0") as door:
            yield door.address
        return
    served = serve_grpc(grpc_blocking_server.server(), source, any_id(), "127.0.0.1:0")
    door = await asyncio.to_thread(served.__enter__)
    try:
        yield door.address
    finally:
        await asyncio.to_thread(served.__exit__, None, None, None)


@asynccontextmanager
async def asking(name: str, source: X509Source, address: str) -> AsyncIterator[Ask]:
    """One of the clients, with one channel."""
    if name == "grpc_client":
        async with grpc_channel(source, is_id(SERVER), address, options=AT_ONCE) as channel:
            yield partial(grpc_client.ask, channel)
        return
    with blocking_grpc_channel(source, is_id(SERVER), address, options=AT_ONCE) as blocking:
        yield partial(asyncio.to_thread, grpc_blocking_client.ask, blocking)


async def refused(ask: Ask) -> grpc.RpcError:
    """The error of a call on a new connection."""
    with pytest.raises(grpc.RpcError) as caught:
        await ask()
    return caught.value


@pytest.mark.parametrize(("server", "client"), list(itertools.product(SERVERS, CLIENTS)))
async def test_both_know_each_other_and_refuse_others(
    server: str, client: str, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(server, world.server) as address:
        async with asking(client, world.client, address) as ask:
            assert await ask() == GREETING
        world.client_is(OTHER)
        async with asking(client, world.client, address) as ask:
            error = await refused(ask)
            assert (error.code(), error.details()) == (grpc.StatusCode.PERMISSION_DENIED, "not authorized")
            assert f"peer={OTHER} reason={OTHER} is refused: welcome is {CLIENT}" in caplog.text
        world.client_is(CLIENT)
        world.server_is(OTHER)
        async with asking(client, world.client, address) as ask:
            assert f"{OTHER} is refused: welcome is {SERVER}" in str((await refused(ask)).details())
            world.rotate_root()
            async with asyncio.timeout(60):
                while True:  # as soon as gRPC dials again
                    with contextlib.suppress(grpc.RpcError):
                        assert await ask() == GREETING
                        break


@pytest.mark.parametrize(("server", "client"), list(zip(SERVERS, CLIENTS, strict=True)))
async def test_the_programs_meet_and_follow_their_files_to_a_new_root(server: str, client: str, tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    async with setup.serving(server):
        assert await setup.ask(client) == GREETING
        setup.world.rotate_root()
        setup.write()
        await follows(setup, client, GREETING)


@pytest.mark.parametrize("server", SERVERS)
async def test_a_server_ends_when_it_is_interrupted(server: str, tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    process = await asyncio.create_subprocess_exec(
        # Whoever is started in the background of a shell ignores the signal, and so would what it starts.
        *("env", "--default-signal=INT", sys.executable, setup.copy(server, setup.server)),
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(EXAMPLES.parents[1])},
    )
    try:
        await until(setup.listens)
        assert await setup.ask("grpc_client") == GREETING
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(60):
            _, said = await process.communicate()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    assert process.returncode == -signal.SIGINT
    assert said.splitlines()[-1] == b"KeyboardInterrupt"
