"""A server that ends a connection has its last words heard, whatever its client is just saying."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from datetime import timedelta

from istio_auth.authorize import any_id
from istio_auth.door import Portal
from istio_auth.sources.memory import MemorySource
from istio_auth.tls import client_context, server_context
from tests.fakes.waiting import until
from tests.vectors.x509_svid import BUNDLES, LOCAL

PATIENCE = timedelta(seconds=60)


async def test_a_client_that_writes_when_the_server_has_ended_still_reads_what_it_said() -> None:
    loop, ended = asyncio.get_running_loop(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readline() + b"the last words")
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
        ended.set()

    ours, theirs = (MemorySource.of(LOCAL.svid(path), *BUNDLES) for path in ("/client", "/server"))
    listener = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=server_context(theirs, any_id()))
    port = listener.sockets[0].getsockname()[1]
    context = client_context(ours, any_id(), alpn=("h2",))
    async with listener, Portal("127.0.0.1", port, context, patience=PATIENCE) as portal:
        with socket.socket(socket.AF_UNIX) as client:
            client.setblocking(False)
            await loop.sock_connect(client, portal.target.removeprefix("unix:"))
            await until(lambda: portal.passages)
            (passage,) = portal.passages
            await loop.sock_sendall(client, b"hello\n")
            await ended.wait()
            await until(lambda: passage.out is not None and passage.out.transport is None)
            await loop.sock_sendall(client, b"one more")  # a broken pipe, if the way were closed
            said = b""
            while more := await loop.sock_recv(client, 100):
                said += more
        assert said == b"hello\nthe last words"
        await until(lambda: not portal.passages)
