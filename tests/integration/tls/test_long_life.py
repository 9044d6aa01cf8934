"""One context for a long life: a thousand rotations under open connections, and processes that fork."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import resource
import subprocess
import sys
from pathlib import Path

from istio_auth.authorize import any_id
from istio_auth.sources.memory import MemorySource
from istio_auth.tls import client_context, peer_chain, server_context
from istio_auth.tls.contexts import FollowingContext
from istio_auth.tls.judged import JudgingContext
from istio_auth.x509_source import X509Context
from tests.fakes.waiting import until
from tests.integration.tls.forking import CHILDREN
from tests.vectors.x509_svid import BUNDLES, LOCAL

CONNECTIONS = 100
ROTATIONS = 1000
WARM_UP = 200


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def contexts() -> int:
    """The inner contexts that are alive."""
    gc.collect()
    return sum(isinstance(found, JudgingContext) for found in gc.get_objects())


class Echo:
    """A server of ours, and clients of ours that stay."""

    def __init__(self) -> None:
        self.server_source = MemorySource.of(LOCAL.svid("/server"), *BUNDLES)
        self.client_source = MemorySource.of(LOCAL.svid("/client"), *BUNDLES)
        self.server = server_context(self.server_source, any_id())
        self.client = client_context(self.client_source, any_id())
        self.open = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        with contextlib.suppress(OSError):
            while line := await reader.readline():
                writer.write(line)
        writer.transport.abort()
        self.open -= 1

    async def dial(self, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=self.client)
        await self.talk(reader, writer)
        return reader, writer

    @staticmethod
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello\n")
        assert await reader.readline() == b"hello\n"


async def test_a_thousand_rotations_with_a_hundred_open_connections_leak_nothing() -> None:
    echo = Echo()
    turns = itertools.cycle([X509Context((LOCAL.svid("/server"),), BUNDLES) for _ in range(10)])
    context = echo.server
    assert isinstance(context, FollowingContext)
    listener = await asyncio.start_server(echo.serve, "127.0.0.1", 0, ssl=context)
    async with listener:
        port = listener.sockets[0].getsockname()[1]
        kept = [await echo.dial(port) for _ in range(CONNECTIONS)]
        assert echo.open == CONNECTIONS
        first = peer_chain(kept[0][1])[0]
        before = open_descriptors(), contexts()
        memory = 0
        for number in range(ROTATIONS):
            echo.server_source.replace(next(turns))
            context.current()  # what each handshake asks for
            if number % 50 == 0:  # now and then there is one, and it is of the new SVID
                _, writer = await echo.dial(port)
                assert peer_chain(writer)[0] == echo.server_source.svid().leaf
                writer.close()
                await writer.wait_closed()
            if number == WARM_UP:
                memory = resident_bytes()
        for reader, writer in kept:
            await echo.talk(reader, writer)
            assert peer_chain(writer)[0] == first  # the connections are those that were made before
        await until(lambda: open_descriptors() <= before[0])
        # The one that the connections are under, and the present one.
        assert contexts() <= before[1] + 1
        # A context has some 50 kB: one lost at each rotation would be 40 MB.
        assert resident_bytes() - memory < 10e6
        for _, writer in kept:
            writer.transport.abort()
        await until(lambda: not echo.open)


def test_a_process_that_forks_serves_on_in_all_its_children() -> None:
    """While other threads rotate and make connections at the moment of the fork (see `forking.py`)."""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-m", "tests.integration.tls.forking"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["welcome"] * CHILDREN + ["refused"] * CHILDREN + ["parent", "welcome"]
