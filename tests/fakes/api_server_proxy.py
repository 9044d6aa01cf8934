"""Stands between a client and a real API server, whose administrator it is, and misbehaves on request.

What is not interfered with goes through as it is, and watches as they come.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import aiohttp
from aiohttp import web

_PASSED_ON = ("Accept", "Content-Type")
_PASSED_BACK = ("Content-Type", "Retry-After", "Date")
_REVIEWS = ("tokenreviews", "selfsubjectaccessreviews", "selfsubjectrulesreviews")


@dataclass(frozen=True)
class Call:
    """One request.

    Args:
        method: of HTTP.
        path: with its query.
        namespace, resource, name: of what; a name that is in the body counts too.
        watches: whether it watches.
        at: when it came, in steady seconds.
    """

    method: str
    path: str
    namespace: str
    resource: str
    name: str
    watches: bool
    at: float

    @classmethod
    def of(cls, request: web.Request, body: bytes) -> Call:
        words = request.path.strip("/").split("/")
        words = words[2:] if words[0] == "api" else words[3:]
        namespace = ""
        if len(words) > 2 and words[0] == "namespaces":
            namespace, words = words[1], words[2:]
        resource, name = (*words, "", "")[:2]
        if not name and body:
            name = str(json.loads(body).get("metadata", {}).get("name", ""))
        watches = request.query.get("watch") == "true"
        return cls(request.method, request.path_qs, namespace, resource, name, watches, time.monotonic())

    @property
    def writes(self) -> bool:
        """Whether it changes what is stored."""
        return self.method != "GET" and self.resource not in _REVIEWS


Where = Callable[[Call], bool]


@dataclass(frozen=True)
class Answer:
    """What is answered in the API server's place."""

    status: int
    message: str = "so says the proxy"
    headers: dict[str, str] = field(default_factory=dict)

    def response(self) -> web.Response:
        status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": self.status}
        return web.json_response(status | {"message": self.message}, status=self.status, headers=self.headers)


@dataclass
class Fault:
    """What is done to some requests.

    Args:
        where: to which.
        before: done before the API server hears of one; it may answer in its place.
        after: done when the API server has answered, before the client hears of it.
        left: to how many more.

    Attributes:
        met: to which it was done.
    """

    where: Where
    before: Callable[[Call], Awaitable[Answer | None]] | None = None
    after: Callable[[Call], Awaitable[None]] | None = None
    left: int = 1
    met: list[Call] = field(default_factory=list)


class Cut(Exception):
    """The client hears nothing more."""


class APIServerProxy:
    """The proxy, from entering to leaving.

    Args:
        url: the API server.
        tls: what makes a client its administrator.

    Attributes:
        url: where it is.
        calls: what was asked so far.
        answered: the status that the client got for each call that was answered.
        expired: how many watches the API server ended because their version was too old.
        shut: while it is, nobody is let in.
    """

    def __init__(self, url: str, tls: ssl.SSLContext) -> None:
        self.calls: list[Call] = []
        self.answered: list[tuple[Call, int]] = []
        self.expired = 0
        self.shut = False
        self.url = ""
        self._upstream, self._tls = url, tls
        self._faults: list[Fault] = []
        self._connections: set[asyncio.Transport] = set()

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(ssl=self._tls, limit=0)
        self._session = aiohttp.ClientSession(self._upstream, connector=connector, auto_decompress=True)
        server = web.Server(self._serve, handler_cancellation=True)
        self._runner = web.ServerRunner(server, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.shut = True
        self.cut()
        await self._runner.cleanup()
        await self._session.close()

    def kubeconfig(self, path: Path) -> Path:
        """Write a kubeconfig that leads here; the path of it."""
        path.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "test",
                    "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
                    "clusters": [{"name": "test", "cluster": {"server": self.url}}],
                    "users": [{"name": "test", "user": {}}],
                }
            )
        )
        return path

    def cut(self) -> None:
        """Break every connection that is open."""
        for transport in list(self._connections):
            transport.abort()

    def behave(self) -> None:
        """Do nothing any more that was asked for."""
        self._faults.clear()

    def interfere(self, fault: Fault) -> Fault:
        """From now on do this, before what was asked for earlier."""
        self._faults.insert(0, fault)
        return fault

    def answer(self, where: Where, answer: Answer, *, times: int = 1) -> Fault:
        """Answer in the API server's place, which never hears of it."""

        async def before(_: Call) -> Answer:
            return answer

        return self.interfere(Fault(where, before=before, left=times))

    def lose(self, where: Where, *, times: int = 1) -> Fault:
        """Let the API server do what is asked, and break the connection in place of the answer."""

        async def after(_: Call) -> None:
            raise Cut

        return self.interfere(Fault(where, after=after, left=times))

    def hold(self, where: Where, *, times: int = 1) -> tuple[Fault, asyncio.Event]:
        """Pass a request on no earlier than the event is set, also if the client has left meanwhile."""
        go_on = asyncio.Event()

        async def before(_: Call) -> None:
            await go_on.wait()

        return self.interfere(Fault(where, before=before, left=times)), go_on

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        transport = request.transport
        assert isinstance(transport, asyncio.Transport)
        self._connections.add(transport)
        try:
            if self.shut:
                raise Cut
            # In a task of its own: what has set out arrives, whether or not the client waits for it.
            return await asyncio.shield(asyncio.create_task(self._pass_on(request)))
        except (Cut, aiohttp.ClientError, ConnectionError):
            transport.abort()
            return web.Response()
        finally:
            self._connections.discard(transport)

    async def _pass_on(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()
        call = Call.of(request, body)  # type: ignore[arg-type]  # only what both have is looked at
        self.calls.append(call)
        fault = next((each for each in self._faults if each.left and each.where(call)), None)
        if fault is not None:
            fault.left -= 1
            fault.met.append(call)
            if fault.before is not None and (answer := await fault.before(call)) is not None:
                self.answered.append((call, answer.status))
                return answer.response()
        headers = {name: request.headers[name] for name in _PASSED_ON if name in request.headers}
        timeout = aiohttp.ClientTimeout(total=None)
        async with self._session.request(
            call.method, call.path, data=body or None, headers=headers, timeout=timeout
        ) as answered:
            self.answered.append((call, answered.status))
            self.expired += answered.status == 410
            back = {name: answered.headers[name] for name in _PASSED_BACK if name in answered.headers}
            if call.watches and answered.status == 200:
                return await self._stream(request, answered, back)
            content = await answered.read()
        if fault is not None and fault.after is not None:
            await fault.after(call)
        return web.Response(body=content, status=answered.status, headers=back)

    async def _stream(
        self, request: web.BaseRequest, answered: aiohttp.ClientResponse, headers: dict[str, str]
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        with suppress(ConnectionError, aiohttp.ClientError):
            async for chunk in answered.content.iter_any():
                self.expired += chunk.count(b'"code":410')
                await response.write(chunk)
        return response
