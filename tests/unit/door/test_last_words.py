"""The last words of a peer are delivered, also when bytes for it can not be delivered any more."""

from __future__ import annotations

import asyncio
import socket

from istio_auth.door.splice import BUFFER_BYTES, PatientEnd, PlainEnd

LAST = b"the answer, and goodbye"


async def rest(connection: socket.socket) -> bytes:
    """What comes until the end."""
    said = b""
    async with asyncio.timeout(60):
        while more := await asyncio.get_running_loop().sock_recv(connection, 100):
            said += more
    return said


async def test_what_a_server_said_before_it_closed_reaches_a_caller_that_is_still_writing() -> None:
    buffer, loop = memoryview(bytearray(BUFFER_BYTES)), asyncio.get_running_loop()
    near, caller = socket.socketpair()
    far, server = socket.socketpair()
    caller.setblocking(False)
    with caller, server:
        _, one = await loop.create_connection(lambda: PatientEnd(buffer), sock=near)
        _, other = await loop.create_connection(lambda: PlainEnd(buffer), sock=far)
        one.tie(other)
        server.sendall(LAST)
        server.close()
        other.send(b"one more request")  # a broken pipe, before what the server said was read
        await asyncio.sleep(0)
        caller.sendall(b"and another one")  # neither does the caller find its way closed
        assert await rest(caller) == LAST
        caller.close()
        async with asyncio.timeout(60):
            while one.transport is not None:  # noqa: ASYNC110  # an end has no event for this
                await asyncio.sleep(0)
