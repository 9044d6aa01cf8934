"""The application of a workload: a small HTTP server that says who called, and a TCP echo. It knows nothing of TLS."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from aiohttp import web

_PROOF = "x-forwarded-client-cert"
_URI = re.compile(r"(?:^|;)URI=([^;,]*)")
_LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Application:
    """Where an application listens, on loopback."""

    http_port: int
    tcp_port: int


@asynccontextmanager
async def application(name: str) -> AsyncIterator[Application]:
    """An application on free ports, until the context is left."""
    runner = web.AppRunner(_web_application(name), access_log=None)
    await runner.setup()
    echo = await asyncio.start_server(_echo, _LOOPBACK, 0)
    try:
        await web.TCPSite(runner, _LOOPBACK, 0).start()
        yield Application(runner.addresses[0][1], echo.sockets[0].getsockname()[1])
    finally:
        echo.close()
        await runner.cleanup()


def caller_of(proof: str | None) -> str:
    """The SPIFFE ID in the header that the sidecar sets, or nothing."""
    found = _URI.search(proof or "")
    return found[1] if found else ""


def _web_application(name: str) -> web.Application:
    async def answer(request: web.Request) -> web.Response:
        caller = caller_of(request.headers.get(_PROOF))
        headers = [[key.lower(), value] for key, value in request.headers.items()]
        return web.json_response({"workload": name, "caller": caller, "path": request.path_qs, "headers": headers})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    return app


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while line := await reader.read(4096):
            writer.write(line)
            await writer.drain()
    writer.close()
