"""An API server in memory: lists in pages, watches from a version on, statuses; and it misbehaves on request.

What it is asked beyond that, reviews and subresources, it answers with what was sent.
"""

from __future__ import annotations

import asyncio
import json
import re
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import unquote

from aiohttp import web

from ca.platform.kubernetes.api.objects import Key, Object, member, object_of, text
from ca.platform.kubernetes.api.resources import Resource
from istio_auth.strict_json import JSON

_PATH = re.compile(
    r"(?P<root>/api/v1|/apis/[^/]+/[^/]+)(/namespaces/(?P<namespace>[^/]+)(?=/))?/(?P<plural>[^/]+)"
    r"(/(?P<name>[^/]+))?(/(?P<subresource>.+))?"
)


@dataclass(frozen=True)
class Asked:
    """One request.

    Args:
        method: of HTTP.
        path: without its query, as it came.
        query: what the query says.
        headers: by lower-case names.
        body: what was sent.
        at: when it came, in steady seconds.
    """

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: Object
    at: float

    @property
    def watches(self) -> bool:
        return self.query.get("watch") == "true"

    @property
    def lists(self) -> bool:
        parts = _PATH.fullmatch(self.path)
        return self.method == "GET" and not self.watches and parts is not None and not parts["name"]


Where = Callable[[Asked], bool]


@dataclass
class Answer:
    """What is said in place of a proper answer.

    Args:
        status: of HTTP.
        content: what is said: a JSON document, or bytes of any kind.
        headers: what else is said.
        left: to how many more requests.
        where: to which.
        halfway: what happens after the content, which is then not the whole: `break` or `stall`; or empty.

    Attributes:
        met: to which it was said.
    """

    status: int
    content: JSON | bytes = None
    headers: Mapping[str, str] = field(default_factory=dict)
    left: int = 1
    where: Where = lambda _: True
    halfway: str = ""
    met: list[Asked] = field(default_factory=list)

    async def give(self, request: web.BaseRequest) -> web.StreamResponse:
        if not self.halfway:
            return self.response()
        response = web.StreamResponse(status=self.status, headers=self.headers)
        await response.prepare(request)
        assert isinstance(self.content, bytes)
        await response.write(self.content)
        if self.halfway == "stall":
            await asyncio.Event().wait()
        assert request.transport is not None
        request.transport.abort()
        return response

    def response(self) -> web.Response:
        if isinstance(self.content, bytes):
            return web.Response(body=self.content, status=self.status, headers=self.headers)
        said = refusal(self.status) if self.content is None else self.content
        return web.json_response(said, status=self.status, headers=self.headers)


def refusal(status: int, message: str = "so says the fake") -> Object:
    """Kubernetes' `Status`."""
    return {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": status, "message": message}


class FakeAPIServer:
    """The API server, from entering to leaving.

    Args:
        tls: how it proves itself and whom it lets in; none for plain HTTP.

    Attributes:
        url: where it is.
        asked: what was asked so far.
        page: how many objects a page of a list has at most.
        mute: while it is, watches are opened and nothing is told.
        expires_as_event: an expired version is told in the watch, and not in place of it.
    """

    def __init__(self, *, tls: ssl.SSLContext | None = None) -> None:
        self.url = ""
        self.asked: list[Asked] = []
        self.page = 500
        self.mute = False
        self.expires_as_event = False
        self._tls = tls
        self._version = 100
        self._oldest = 0
        self._objects: dict[str, dict[Key, Object]] = {}
        self._told: list[tuple[int, str, Object]] = []
        self._answers: list[Answer] = []
        self._held: list[tuple[Where, asyncio.Event]] = []
        self._watches: dict[asyncio.Queue[bytes | None], tuple[str, Asked, str]] = {}
        self._connections: set[asyncio.Transport] = set()

    async def __aenter__(self) -> Self:
        self._runner = web.ServerRunner(web.Server(self._serve, handler_cancellation=True), shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self._tls).start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"{'https' if self._tls else 'http'}://{host}:{port}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.cut()
        await self._runner.cleanup()

    def kubeconfig(self, path: Path, *, user: Mapping[str, JSON] | None = None, **cluster: JSON) -> Path:
        """Write a kubeconfig that leads here; the path of it.

        Args:
            path: where to.
            user: who asks, as a kubeconfig has it.
            cluster: what else is said of the cluster, dashes as underscores.
        """
        more = {name.replace("_", "-"): value for name, value in cluster.items()}
        document = {
            "current-context": "test",
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "clusters": [{"name": "test", "cluster": {"server": self.url} | more}],
            "users": [{"name": "test", "user": dict(user or {})}],
        }
        path.write_text(json.dumps(document))
        return path

    def put(self, resource: Resource, name: str, *, namespace: str = "", **content: JSON) -> Object:
        """Store an object, and tell those who watch; what was stored."""
        metadata = {"name": name, "namespace": namespace, "uid": f"uid-{name}"} | object_of(content.pop("metadata", {}))
        body: Object = {"metadata": metadata | {"resourceVersion": self._next_version()}, **content}
        found = self._objects.setdefault(resource.path(), {})
        change = "MODIFIED" if Key.of(body) in found else "ADDED"
        found[Key.of(body)] = body
        self._tell(resource.path(), {"type": change, "object": body})
        return body

    def remove(self, resource: Resource, name: str, *, namespace: str = "") -> None:
        """Delete an object, and tell those who watch."""
        body = self._objects[resource.path()].pop(Key(namespace, name))
        metadata = object_of(body["metadata"]) | {"resourceVersion": self._next_version()}
        self._tell(resource.path(), {"type": "DELETED", "object": body | {"metadata": metadata}})

    def expire(self) -> None:
        """Forget every version but the one of now, and break the watches."""
        self._next_version()
        self._oldest = self._version
        self.cut()

    def answer(
        self,
        status: int,
        content: JSON | bytes = None,
        *,
        where: Where = lambda _: True,
        headers: Mapping[str, str] | None = None,
        times: int = 1,
        halfway: str = "",
    ) -> Answer:
        """Say this instead, the latest first (see `Answer`)."""
        answer = Answer(status, content, headers or {}, times, where, halfway)
        self._answers.insert(0, answer)
        return answer

    def hold(self, where: Where) -> asyncio.Event:
        """Answer nothing until the event is set."""
        go_on = asyncio.Event()
        self._held.append((where, go_on))
        return go_on

    @property
    def open(self) -> int:
        """How many watches are open."""
        return len(self._watches)

    @property
    def calm(self) -> bool:
        """Whether everything that was to be told has been sent."""
        return all(stream.empty() for stream in self._watches)

    def bookmark(self) -> None:
        """Tell every watch how far it is."""
        self.say(_line({"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": self._next_version()}}}))

    def say(self, octets: bytes) -> None:
        """Send this to every watch."""
        for stream in self._watches:
            stream.put_nowait(octets)

    def end(self) -> None:
        """End every watch in an orderly way."""
        for stream in self._watches:
            stream.put_nowait(None)

    def cut(self) -> None:
        """Break every connection."""
        for transport in list(self._connections):
            transport.abort()

    def calls(self, where: Where) -> list[Asked]:
        """What was asked of this kind."""
        return [asked for asked in self.asked if where(asked)]

    def _next_version(self) -> str:
        self._version += 1
        return str(self._version)

    def _tell(self, kind: str, event: Object) -> None:
        self._told.append((self._version, kind, event))
        if self.mute:
            return
        for stream, (watched, asked, namespace) in self._watches.items():
            if watched == kind and _selected(event["object"], asked, namespace):
                stream.put_nowait(_line(event))

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        transport = request.transport
        assert isinstance(transport, asyncio.Transport)
        self._connections.add(transport)
        try:
            content = await request.read()
            headers = {name.lower(): value for name, value in request.headers.items()}
            body = json.loads(content) if content else {}
            asked = Asked(
                request.method, request.rel_url.raw_path, dict(request.query), headers, body, time.monotonic()
            )
            self.asked.append(asked)
            for _, go_on in [held for held in self._held if held[0](asked)]:
                await go_on.wait()
            for answer in self._answers:
                if answer.left and answer.where(asked):
                    answer.left -= 1
                    answer.met.append(asked)
                    return await answer.give(request)
            return await self._properly(request, asked)
        finally:
            self._connections.discard(transport)

    async def _properly(self, request: web.BaseRequest, asked: Asked) -> web.StreamResponse:
        parts = _PATH.fullmatch(asked.path)
        if parts is None:
            return _refused(404, f"there is no {asked.path}")
        kind, namespace, name = (
            f"{parts['root']}/{parts['plural']}",
            parts["namespace"] or "",
            unquote(parts["name"] or ""),
        )
        if asked.method == "DELETE":
            return web.json_response(refusal(200) | {"status": "Success"})
        if asked.method != "GET":
            return web.json_response(asked.body | {"kind": "Echo"}, status=201 if asked.method == "POST" else 200)
        if asked.watches:
            return await self._watch(request, asked, kind, namespace)
        if not name:
            return self._list(asked, kind, namespace)
        found = self._objects.get(kind, {}).get(Key(namespace, name))
        return web.json_response({"kind": "Found"} | found) if found else _refused(404, f"{name} not found")

    def _list(self, asked: Asked, kind: str, namespace: str) -> web.Response:
        version, _, begin = asked.query.get("continue", f"{self._version} 0").partition(" ")
        if int(version) < self._oldest:
            return _refused(410, "the continue token is too old")
        every = [item for item in self._objects.get(kind, {}).values() if _selected(item, asked, namespace)]
        end = int(begin) + min(self.page, int(asked.query.get("limit", 500)))
        metadata: Object = {"resourceVersion": version}
        if end < len(every):
            metadata["continue"] = f"{version} {end}"
        return web.json_response({"kind": "List", "metadata": metadata, "items": [*every[int(begin) : end]]})

    async def _watch(self, request: web.BaseRequest, asked: Asked, kind: str, namespace: str) -> web.StreamResponse:
        version = int(asked.query["resourceVersion"])
        if version < self._oldest and not self.expires_as_event:
            return _refused(410, "too old resource version")
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        stream: asyncio.Queue[bytes | None] = asyncio.Queue()
        for line in self._missed(version, asked, kind, namespace):
            stream.put_nowait(line)
        self._watches[stream] = kind, asked, namespace
        try:
            with suppress(ConnectionError):
                while (octets := await stream.get()) is not None:
                    await response.write(octets)
        finally:
            del self._watches[stream]
        return response

    def _missed(self, version: int, asked: Asked, kind: str, namespace: str) -> Iterator[bytes]:
        if version < self._oldest:
            yield _line({"type": "ERROR", "object": refusal(410, "too old resource version")})
        elif not self.mute:
            for told, of, event in self._told:
                if told > version and of == kind and _selected(event["object"], asked, namespace):
                    yield _line(event)


def _selected(item: JSON, asked: Asked, namespace: str) -> bool:
    if namespace and text(item, "metadata", "namespace") != namespace:
        return False
    for rule in filter(None, asked.query.get("fieldSelector", "").split(",")):
        path, unlike, value = re.fullmatch(r"([\w.]+)(!?)=(.*)", rule).groups()  # type: ignore[union-attr]  # or it fails
        if (member(item, *path.split(".")) == value) == bool(unlike):
            return False
    return True


def _refused(status: int, message: str) -> web.Response:
    return web.json_response(refusal(status, message), status=status)


def _line(event: Object) -> bytes:
    return json.dumps(event).encode() + b"\n"
