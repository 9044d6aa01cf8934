"""HTTP on a Unix socket of mode 0600: `GET /status`, `GET /explain?pid=N`. It tells, and changes nothing."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from aiohttp import web

from istio_auth.door.unix_socket import listening_socket
from istio_auth.errors import IstioAuthError, MissingError
from node_agent.admin.status import Status

_LOOK = 2.0  # seconds
_MAX_DIGITS = 10  # of a process id


class AdminServer:
    """Serves from entering to leaving.

    Args:
        path: where to listen.
        status: what it tells.
    """

    def __init__(self, path: Path, status: Status) -> None:
        self._path, self._status = path, status
        site = web.Application()
        site.add_routes([web.get("/status", self._tell), web.get("/explain", self._explain)])
        self._site: web.SockSite | None = None
        self._runner = web.AppRunner(site, access_log=None, shutdown_timeout=1.0)

    async def __aenter__(self) -> Self:
        """Listen.

        Raises:
            ConfigurationError: that is not possible there.
            NotReady: another process listens there.
        """
        await self._runner.setup()
        await self._listen()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._runner.cleanup()
        self._path.unlink(missing_ok=True)

    async def keep_listening(self) -> None:
        """Listen again where the socket was removed, until cancelled; that has to come before leaving."""
        while True:
            await asyncio.sleep(_LOOK)
            if not self._path.exists():
                with suppress(IstioAuthError, OSError):  # a folder that is gone the workloads' own sockets tell of
                    await self._listen()

    async def _listen(self) -> None:
        listening = listening_socket(self._path, 0o600)
        if self._site is not None:
            await self._site.stop()
        self._site = web.SockSite(self._runner, listening)
        await self._site.start()

    async def _tell(self, _request: web.Request) -> web.Response:
        return web.json_response(self._status.document())

    async def _explain(self, request: web.Request) -> web.Response:
        word = request.query.get("pid", "")
        if not (word.isascii() and word.isdigit() and len(word) <= _MAX_DIGITS and 0 < int(word) < 1 << 31):
            return web.json_response({"error": f"{word[:20]!r} is no process id"}, status=400)
        try:
            return web.json_response(await self._status.explained(int(word)))
        except MissingError as error:
            return web.json_response({"error": str(error)}, status=404)
