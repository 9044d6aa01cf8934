"""Bytes that come before an end is tied, on every Python that is supported."""

from __future__ import annotations

import asyncio
import socket
from asyncio import selector_events
from collections.abc import Callable
from typing import Any

import pytest

from istio_auth.door.splice import BUFFER_BYTES, PlainEnd


def reading_regardless(self: Any, fd: int, callback: Callable[..., None]) -> None:
    """What a transport of Python 3.11.2 does after `connection_made`: it begins to read, paused or not."""
    if not self._closing:
        self._loop._add_reader(fd, callback)


@pytest.mark.parametrize("early_release", [False, True])
async def test_bytes_that_come_before_an_end_is_tied_are_kept(
    early_release: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if early_release:
        monkeypatch.setattr(f"{selector_events.__name__}._SelectorTransport._add_reader", reading_regardless)
    buffer, loop = memoryview(bytearray(BUFFER_BYTES)), asyncio.get_running_loop()
    near, caller = socket.socketpair()
    far, server = socket.socketpair()
    server.setblocking(False)
    with caller, server:
        caller.sendall(b"said at once")
        _, one = await loop.create_connection(lambda: PlainEnd(buffer), sock=near)
        for _ in range(5):  # turns of the event loop, in each of which the bytes could be read
            await asyncio.sleep(0)
        _, other = await loop.create_connection(lambda: PlainEnd(buffer), sock=far)
        one.tie(other)
        async with asyncio.timeout(60):
            assert await loop.sock_recv(server, 100) == b"said at once"
        one.abort()
        other.abort()
        await asyncio.sleep(0)
