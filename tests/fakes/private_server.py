"""What stands behind a door in tests: greets each connection with who the door says it is, then echoes."""

from __future__ import annotations

import asyncio
import hashlib
from types import TracebackType
from typing import Self

from istio_auth.door import Caller, Door
from istio_auth.errors import NotAuthenticated
from tests.fakes.waiting import until


class PrivateServer:
    """Serves behind a door, from entering to leaving.

    Args:
        door: names the socket to listen on, and the callers.
        greeting: what each caller hears first, before its own words come back; its name by default.

    Attributes:
        callers: who has come, in this order.
        strangers: how many connections did not come through the door.
        open: how many connections are open.
        taken: how many bytes were read.
        digest: what they were.
        reading: cleared, it reads no more.
    """

    def __init__(self, door: Door, *, greeting: bytes | None = None, echoes: bool = True) -> None:
        self._door = door
        self._greeting = greeting
        self._echoes = echoes
        self.callers: list[Caller] = []
        self.strangers = self.open = self.taken = self.ended = 0
        self.digest = hashlib.sha256()
        self.reading = asyncio.Event()
        self.reading.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    @property
    def path(self) -> str:
        return self._door.target.removeprefix("unix:")

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_unix_server(self._serve, self.path)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        self.reading.set()
        await until(lambda: not self.open)

    def hang_up(self) -> None:
        """Close every connection, after what was written is delivered."""
        for writer in list(self._writers):
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        name = writer.get_extra_info("peername") or b"\0"
        try:
            caller = self._door.caller(f"unix-abstract:{name[1:].decode() if isinstance(name, bytes) else name}")
        except NotAuthenticated:
            self.strangers += 1
            writer.close()
            return
        self.callers.append(caller)
        self.open += 1
        self._writers.add(writer)
        try:
            await self._talk(caller, reader, writer)
        except OSError:
            pass  # the caller went away
        finally:
            self.open -= 1
            self.ended += 1
            self._writers.discard(writer)
            writer.close()

    async def _talk(self, caller: Caller, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(f"{caller}\n".encode() if self._greeting is None else self._greeting)
        while await self.reading.wait() and (data := await reader.read(65536)):
            self.taken += len(data)
            self.digest.update(data)
            if self._echoes:
                writer.write(data)
                await writer.drain()
