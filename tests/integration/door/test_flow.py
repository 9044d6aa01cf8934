"""Bytes through a door: all of them, in order, never more in memory than a little, and to the end of each side."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from istio_auth.authorize import any_id
from istio_auth.door import Door
from istio_auth.door.splice import BUFFER_BYTES, PlainEnd, TLSEnd
from istio_auth.sources.memory import MemorySource
from istio_auth.tls import client_context, server_context
from tests.fakes.authority import FakeAuthority
from tests.fakes.private_server import PrivateServer
from tests.fakes.tcp import reset
from tests.fakes.waiting import until

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
WAYS = ["unix", "tls"]
BLOCK = bytes(range(256)) * 256
MANY = 400  # blocks of 64 KiB: more than any kernel buffer between the two ends


class Way:
    """How callers come in: over TLS, or by a Unix socket."""

    def __init__(self, door: Door, way: str, folder: Path, authority: FakeAuthority) -> None:
        self.door = door
        self._way = way
        self._path = folder / "door.sock"
        self._source = MemorySource.of(authority.svid(), authority.bundle())
        self._port = 0
        self._writers: list[asyncio.StreamWriter] = []

    async def open(self) -> None:
        if self._way == "unix":
            await self.door.listen_unix(self._path, name="flow")
        else:
            _, self._port = await self.door.listen_tls("127.0.0.1", 0, server_context(self._source, any_id()))

    async def dial(self) -> Streams:
        if self._way == "unix":
            streams = await asyncio.open_unix_connection(str(self._path))
        else:
            streams = await asyncio.open_connection(
                "127.0.0.1", self._port, ssl=client_context(self._source, any_id()), server_hostname="door.test"
            )
        self._writers.append(streams[1])
        return streams

    async def close(self) -> None:
        for writer in self._writers:
            if not writer.is_closing():
                writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


@pytest.fixture(params=WAYS)
async def way(
    request: pytest.FixtureRequest, door: Door, tmp_path: Path, authority: FakeAuthority
) -> AsyncIterator[Way]:
    way = Way(door, request.param, tmp_path, authority)
    await way.open()
    yield way
    await way.close()


def ends(door: Door) -> list[PlainEnd]:
    """Both ends of every connection, to look at what they keep."""
    near = [guest.end for guest in door._register._guests]  # type: ignore[attr-defined]  # Guest is a visit
    return [end for one in near for end in (one, one._other) if end is not None]


def kept(door: Door) -> int:
    """How many bytes the door holds for connections whose other side is slow."""
    buffers = [end.transport.get_write_buffer_size() for end in ends(door) if end.transport is not None]
    memory = [end._incoming.pending for end in ends(door) if isinstance(end, TLSEnd)]
    return sum(buffers) + sum(memory)


async def push_until_stuck(writer: asyncio.StreamWriter) -> int:
    """Write until nobody takes it any more; how much was written."""
    written = 0
    for _ in range(10 * MANY):
        writer.write(BLOCK)
        written += len(BLOCK)
        try:
            async with asyncio.timeout(0.2):
                await writer.drain()
        except TimeoutError:
            return written
    raise AssertionError("everything was taken, without a limit")


async def test_many_bytes_come_back_in_order(way: Way, server: PrivateServer) -> None:
    reader, writer = await way.dial()
    await reader.readline()
    digest = hashlib.sha256()

    async def fetch() -> None:
        for _ in range(MANY // 4):
            digest.update(await reader.readexactly(len(BLOCK)))

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(fetch())
        for number in range(MANY // 4):
            writer.write(bytes([number % 251]) + BLOCK[1:])
            await writer.drain()
    expected = hashlib.sha256(b"".join(bytes([number % 251]) + BLOCK[1:] for number in range(MANY // 4)))
    assert digest.digest() == server.digest.digest() == expected.digest()


async def test_one_byte_at_a_time(way: Way, server: PrivateServer) -> None:
    reader, writer = await way.dial()
    await reader.readline()
    for number in range(50):
        writer.write(bytes([number]))
        assert await reader.readexactly(1) == bytes([number])


async def test_a_slow_server_holds_its_caller_back(way: Way, door: Door) -> None:
    async with PrivateServer(door, echoes=False) as server:
        server.reading.clear()
        reader, writer = await way.dial()
        await reader.readline()
        written = await push_until_stuck(writer)
        assert kept(door) < 4 * BUFFER_BYTES
        server.reading.set()
        await writer.drain()
        await until(lambda: server.taken == written)
        expected = hashlib.sha256()
        for _ in range(written // len(BLOCK)):
            expected.update(BLOCK)
        assert server.digest.digest() == expected.digest()


async def test_a_slow_caller_holds_the_server_back(way: Way, door: Door) -> None:
    async with PrivateServer(door, greeting=b"x" * (MANY * len(BLOCK))) as server:
        reader, writer = await way.dial()
        writer.transport.pause_reading()  # type: ignore[attr-defined]  # it is a transport both ways
        await until(lambda: any(end.transport and end.transport.get_write_buffer_size() for end in ends(door)))
        seen = [-1, kept(door)]
        while seen[-1] != seen[-2]:  # until nothing moves any more
            await asyncio.sleep(0.05)
            seen.append(kept(door))
        assert 0 < max(seen) < 4 * BUFFER_BYTES
        writer.transport.resume_reading()  # type: ignore[attr-defined]  # the same
        assert await reader.readexactly(MANY * len(BLOCK))
        assert server.open == 1


async def test_a_slow_caller_does_not_hold_others_back(way: Way, server: PrivateServer) -> None:
    slow_reader, slow = await way.dial()
    await slow_reader.readline()
    slow.transport.pause_reading()  # type: ignore[attr-defined]  # it is a transport both ways
    await push_until_stuck(slow)
    reader, writer = await way.dial()
    await reader.readline()
    writer.write(b"quick\n")
    assert await reader.readline() == b"quick\n"


async def test_what_was_sent_before_the_end_arrives(way: Way, door: Door) -> None:
    async with PrivateServer(door, echoes=False) as server:
        reader, writer = await way.dial()
        await reader.readline()
        server.reading.clear()
        for _ in range(8):
            writer.write(BLOCK)
        writer.close()
        server.reading.set()
        await until(lambda: server.ended == 1)
        assert server.taken == 8 * len(BLOCK)
        await until(lambda: not door.connections)


async def test_what_the_server_said_before_its_end_arrives(way: Way, door: Door) -> None:
    async with PrivateServer(door, greeting=BLOCK * 32) as server:
        reader, _ = await way.dial()
        await until(lambda: server.open == 1)
        server.hang_up()
        assert len(await reader.read(-1)) == 32 * len(BLOCK)
        await until(lambda: not door.connections)


async def test_a_half_closed_caller_is_closed_whole_after_its_last_byte(
    door: Door, server: PrivateServer, tmp_path: Path
) -> None:
    await door.listen_unix(tmp_path / "s", name="half")
    reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))
    await reader.readline()
    writer.write(b"last words")
    writer.write_eof()
    await until(lambda: server.ended == 1)
    assert server.taken == len(b"last words")
    await reader.read()
    assert reader.at_eof()
    await until(lambda: not door.connections)
    writer.close()


async def test_a_caller_that_says_goodbye_over_tls_and_keeps_its_socket_is_closed(
    door: Door, server: PrivateServer, authority: FakeAuthority
) -> None:
    source = MemorySource.of(authority.svid(), authority.bundle())
    _, port = await door.listen_tls("127.0.0.1", 0, server_context(source, any_id()))

    def visit() -> bytes:
        context = client_context(source, any_id())
        with context.wrap_socket(socket.create_connection(("127.0.0.1", port), timeout=60)) as tls:
            assert tls.recv(100)
            tls.sendall(b"bye")
            assert tls.recv(3) == b"bye"
            plain = tls.unwrap()  # returns once the door has said goodbye too
            rest = plain.recv(100)
            plain.close()
            return rest

    assert await asyncio.to_thread(visit) == b""
    await until(lambda: server.ended == 1)
    assert server.taken == 3


async def test_a_reset_in_the_middle_ends_both_sides_and_nothing_else(way: Way, server: PrivateServer) -> None:
    other_reader, other = await way.dial()
    await other_reader.readline()
    reader, writer = await way.dial()
    await reader.readline()
    writer.write(BLOCK)
    if (plain := writer.get_extra_info("socket")).family != socket.AF_UNIX:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    writer.transport.abort()
    await until(lambda: server.ended == 1)
    await until(lambda: way.door.connections == 1)
    other.write(b"still here\n")
    assert await other_reader.readline() == b"still here\n"


async def test_garbage_in_the_middle_of_tls_ends_the_connection(
    door: Door, server: PrivateServer, authority: FakeAuthority
) -> None:
    source = MemorySource.of(authority.svid(), authority.bundle())
    _, port = await door.listen_tls("127.0.0.1", 0, server_context(source, any_id()))

    def visit() -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=60) as plain:
            tls = client_context(source, any_id()).wrap_socket(plain)
            assert tls.recv(100)
            tls.sendall(b"fine")
            raw = socket.socket(fileno=tls.detach())
            raw.settimeout(60)
            raw.sendall(b"\x17\x03\x03\x00\x20" + b"g" * 32)
            while raw.recv(1000):
                pass
            raw.close()

    await asyncio.to_thread(visit)
    await until(lambda: server.ended == 1)
    assert server.taken == 4
    assert door.refused == 0  # it was let in: this is the end of a connection, and no refusal


async def test_a_peer_that_never_fetches_the_rest_is_not_waited_for_forever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("istio_auth.door.splice.LINGER_SECONDS", 0.05)
    ours, theirs = socket.socketpair()
    with theirs:
        _, end = await asyncio.get_running_loop().create_connection(
            lambda: PlainEnd(memoryview(bytearray(BUFFER_BYTES))), sock=ours
        )
        end.send(BLOCK * 32)
        end.finish()
        assert end.transport is not None  # it waits for a while
        await until(lambda: end.transport is None)


class TestClosing:
    async def test_those_that_are_here_may_finish(self, way: Way, server: PrivateServer) -> None:
        reader, writer = await way.dial()
        await reader.readline()
        closing = asyncio.create_task(way.door.close(timedelta(seconds=60)))
        await asyncio.sleep(0)
        with pytest.raises((ConnectionRefusedError, FileNotFoundError)):
            await way.dial()
        writer.write(b"last\n")
        assert await reader.readline() == b"last\n"
        assert not closing.done()
        writer.close()
        await closing
        assert not Path(server.path).parent.exists()

    async def test_whoever_stays_too_long_is_sent_away(self, way: Way, server: PrivateServer) -> None:
        reader, _ = await way.dial()
        await reader.readline()
        began = asyncio.get_running_loop().time()
        await way.door.close(timedelta(seconds=0.1))
        assert asyncio.get_running_loop().time() - began >= 0.1
        assert way.door.connections == 0
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            assert await reader.read() == b""
        await until(lambda: server.ended == 1)

    @pytest.mark.usefixtures("server")
    async def test_a_slow_one_is_sent_away_too(self, way: Way) -> None:
        reader, writer = await way.dial()
        await reader.readline()
        writer.transport.pause_reading()  # type: ignore[attr-defined]  # it is a transport both ways
        await push_until_stuck(writer)
        open_ends = ends(way.door)
        await way.door.close(timedelta())
        assert way.door.connections == 0
        assert [end.transport for end in open_ends] == [None, None]

    async def test_a_name_is_nobodys_after_its_caller_has_left(self, way: Way, server: PrivateServer) -> None:
        reader, writer = await way.dial()
        await reader.readline()
        (name,) = way.door._register._callers
        assert way.door.caller(f"unix-abstract:{name}") is server.callers[0]
        writer.close()
        await until(lambda: not way.door.connections)
        with pytest.raises(Exception, match="did not come through the door"):
            way.door.caller(f"unix-abstract:{name}")


@contextlib.contextmanager
def busy_server(door: Door) -> Iterator[socket.socket]:
    """A private server whose queue of new connections is full."""
    private = door.target.removeprefix("unix:")
    with socket.socket(socket.AF_UNIX) as busy, contextlib.ExitStack() as queue:
        busy.bind(private)
        busy.listen(0)
        for _ in range(2):
            waiting = queue.enter_context(socket.socket(socket.AF_UNIX))
            waiting.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                waiting.connect(private)
        yield busy


async def test_bytes_that_come_before_the_server_does_are_held_back(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("istio_auth.door.visit._TRIES", 1000)
    with busy_server(way.door) as busy:
        _, writer = await way.dial()
        await until(lambda: way.door.connections == 1)
        await push_until_stuck(writer)
        assert kept(way.door) < 4 * BUFFER_BYTES
        busy.accept()[0].close()
        await until(lambda: way.door.accepted == 1)
        connection, _ = busy.accept()
        connection.setblocking(False)
        with connection:
            assert (await asyncio.get_running_loop().sock_recv(connection, 4)) == BLOCK[:4]


async def test_the_first_words_may_come_with_the_end_of_the_handshake(
    door: Door, server: PrivateServer, authority: FakeAuthority
) -> None:
    source = MemorySource.of(authority.svid(), authority.bundle())
    _, port = await door.listen_tls("127.0.0.1", 0, server_context(source, any_id()))
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = client_context(source, any_id()).wrap_bio(incoming, outgoing)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while True:
        try:
            tls.do_handshake()
            break
        except ssl.SSLWantReadError:
            writer.write(outgoing.read())
            incoming.write(await reader.read(65536))
    tls.write(b"at once")
    writer.write(outgoing.read())  # the last of the handshake, and the first of the words
    await until(lambda: server.taken == len(b"at once"))
    writer.close()
    await until(lambda: not door.connections)


async def test_a_caller_that_leaves_while_it_waits_for_the_server_is_forgotten(
    door: Door, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its visit must not go on knocking at the private server, nor count as one that we refused."""
    monkeypatch.setattr("istio_auth.door.visit._SECONDS_BETWEEN", 3600)
    await door.listen_unix(tmp_path / "s", name="waiting")
    with busy_server(door):
        leaving = socket.socket(socket.AF_UNIX)
        leaving.connect(str(tmp_path / "s"))
        await until(lambda: door.connections == 1)
        (visit,) = door._register._guests
        reset(leaving)
        visit.send_away()
        await until(lambda: not door.connections)
        await until(lambda: visit._entering is None)  # type: ignore[attr-defined]  # Guest is a visit
    assert (door.accepted, door.refused) == (0, 0)
