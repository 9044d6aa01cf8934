"""The library as a program, so that conformance suites of other people can drive it: `python -m tests.interop.harness`.

It is started with `SPIFFE_ENDPOINT_SOCKET` set, prints `SPIFFE_HARNESS_VERSION=1`, `SPIFFE_X509_PORT=<port>` and
`SPIFFE_CONTROL_PORT=<port>`, one a line, then `READY` once both ports listen and the first SVID has arrived. At the
X.509 port each peer with a valid X509-SVID reads its own SPIFFE ID and a newline. The control port speaks JSON:

    GET  /v1/info
    POST /v1/x509/dial     {"address": "host:port"}                        200 {"spiffe_id"}
    POST /v1/jwt/validate  {"token": "...", "audience": "..."}             200 {"spiffe_id", "claims"}
    POST /v1/jwt/fetch     {"audience": ["..."], "spiffe_id": "spiffe..."}  200 {"spiffe_id", "claims", "token"}

What the library refuses is answered with 422 and `{"error"}`, a request that is not as above with 400. Nothing is
tried twice here and nothing is checked: what happens is what the library does. SIGTERM ends it.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from importlib.metadata import version

from aiohttp import web

from istio_auth import JWTSVID, JWTSource, SpiffeID, WorkloadAPISource, any_id, client_context, peer_id, server_context
from istio_auth.errors import ConfigurationError, IstioAuthError, MalformedError, NotReady
from istio_auth.host_port import HostPort
from istio_auth.strict_json import JSON, parse_json

LOOPBACK = "127.0.0.1"
LARGEST_REQUEST = 16 << 20  # so that it is the library that refuses an enormous token
PATIENCE = timedelta(seconds=20)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Harness:
    """What is asked of the library, over its two sources."""

    def __init__(self, source: WorkloadAPISource, tokens: JWTSource) -> None:
        self._tokens = tokens
        self._dialling = client_context(source, any_id())
        self.serving = server_context(source, any_id())

    def control(self) -> web.Application:
        """What the control port answers."""
        site = web.Application(client_max_size=LARGEST_REQUEST, middlewares=[_in_json])
        site.router.add_get("/v1/info", self._info, allow_head=False)
        site.router.add_post("/v1/x509/dial", self._dial)
        site.router.add_post("/v1/jwt/validate", self._validate)
        site.router.add_post("/v1/jwt/fetch", self._fetch)
        return site

    async def _info(self, _request: web.Request) -> web.Response:
        return web.json_response({"name": "istio-auth", "version": version("istio-auth"), "harness_version": 1})

    async def _dial(self, request: web.Request) -> web.Response:
        server = _address(await _asked(request))
        try:
            async with asyncio.timeout(PATIENCE.total_seconds()):
                _, writer = await asyncio.open_connection(server.host, server.port, ssl=self._dialling)
        except OSError as error:  # refusals of TLS peers are among them
            return _refused(error)
        try:
            return web.json_response({"spiffe_id": str(peer_id(writer))})
        finally:
            writer.close()

    async def _validate(self, request: web.Request) -> web.Response:
        asked = await _asked(request)
        token, audience = _text(asked, "token"), _text(asked, "audience")
        with suppress(NotReady):  # whether bundles came meanwhile, the library tells below
            await self._tokens.ready(PATIENCE)
        try:
            return web.json_response(_told(self._tokens.validate(token, audience)))
        except IstioAuthError as error:
            return _refused(error)

    async def _fetch(self, request: web.Request) -> web.Response:
        asked = await _asked(request)
        audiences, wanted = _texts(asked, "audience"), _text(asked, "spiffe_id", default="")
        try:
            spiffe_id = SpiffeID.parse(wanted) if wanted else None
            svid = await self._tokens.fetch_async(*audiences, spiffe_id=spiffe_id)
        except IstioAuthError as error:
            return _refused(error)
        return web.json_response(_told(svid) | {"token": svid.token})


class _Greeting(asyncio.Protocol):
    """Tells a peer who it is; only peers that were let in get here."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Write and close at once, before a peer that has closed its own direction is heard."""
        assert isinstance(transport, asyncio.Transport)
        transport.write(f"{peer_id(transport)}\n".encode())
        transport.close()


def _told(svid: JWTSVID) -> dict[str, JSON]:
    return {"spiffe_id": str(svid.id), "claims": svid.claims.to_document()}


def _refused(error: Exception) -> web.Response:
    return web.json_response({"error": str(error) or type(error).__name__}, status=422)


@web.middleware
async def _in_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Whatever is wrong with a request is told in JSON too."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        allowed = {"Allow": allow} if (allow := error.headers.get("Allow")) else None
        return web.json_response({"error": error.reason}, status=error.status, headers=allowed)
    except MalformedError as error:
        return web.json_response({"error": str(error)}, status=400)


async def _asked(request: web.Request) -> dict[str, JSON]:
    document = parse_json(await request.read(), limit=LARGEST_REQUEST)
    if not isinstance(document, dict):
        raise MalformedError("the body is no JSON object")
    return document


def _text(asked: dict[str, JSON], name: str, *, default: str | None = None) -> str:
    value = asked.get(name)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        raise MalformedError(f"{name!r} is missing or no text")
    return value


def _texts(asked: dict[str, JSON], name: str) -> list[str]:
    values = asked.get(name)
    texts = [value for value in values if isinstance(value, str)] if isinstance(values, list) else []
    if texts != values:
        raise MalformedError(f"{name!r} is missing or no list of texts")
    return texts


def _address(asked: dict[str, JSON]) -> HostPort:
    server = HostPort.parse(_text(asked, "address"))
    if not server.host or not server.port:
        raise MalformedError("'address' names no host, or no port")
    return server


async def run() -> None:
    """Serve until SIGTERM."""
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    async with WorkloadAPISource() as source, JWTSource() as tokens:
        harness = Harness(source, tokens)
        loop = asyncio.get_running_loop()
        server = await loop.create_server(_Greeting, LOOPBACK, 0, ssl=harness.serving, backlog=1024)
        runner = web.AppRunner(harness.control(), access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        control = web.TCPSite(runner, LOOPBACK, 0)
        await control.start()
        _say("SPIFFE_HARNESS_VERSION=1")
        _say(f"SPIFFE_X509_PORT={server.sockets[0].getsockname()[1]}")
        _say(f"SPIFFE_CONTROL_PORT={runner.addresses[0][1]}")
        readiness = asyncio.create_task(_tell_when_ready(source))
        await ended.wait()
        readiness.cancel()
        server.close()
        await runner.cleanup()


async def _tell_when_ready(source: WorkloadAPISource) -> None:
    async for _context in source.updates():
        _say("READY")
        return


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    try:
        asyncio.run(run())
    except ConfigurationError as error:
        sys.exit(f"harness: {error}")
