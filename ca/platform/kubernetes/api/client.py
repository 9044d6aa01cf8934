"""KubernetesAPI: the API server as this project needs it, a few verbs on plain JSON objects, with errors of ours.

Configuration, credentials and transport are those of the official client (`kubernetes.aio`), with one `ApiClient`. Its
typed models are not used, because ten thousand of them cost too much. `ca.platform.kubernetes.api.refusals` says what
the errors mean. After "too many requests" a request is made again, a few times, when the server says.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from urllib.parse import urlencode

import aiohttp
from kubernetes.aio.client import ApiClient
from kubernetes.aio.client.exceptions import ApiException
from kubernetes.aio.config import ConfigException

from ca.platform.kubernetes.api.objects import Object, object_of, text
from ca.platform.kubernetes.api.refusals import refusal, unreachable
from ca.platform.kubernetes.api.resources import Resource
from istio_auth.clock import Clock
from istio_auth.errors import Exhausted, MissingError, NotReady

DEADLINE = timedelta(seconds=15)
_PAGE = 500
_PATIENCE = 4  # how often a request that is answered with 429 is made in all
_LONGEST_WAIT = timedelta(seconds=30)  # if the server asks for a longer wait, the caller gets the error
_MERGE_PATCH = "application/merge-patch+json"
_ACCEPTED = "application/json, application/jwk-set+json"  # the published keys come as the latter, or not at all
_OURSELVES = f"istio-auth/{importlib.metadata.version('istio-auth')}"  # our name in audit logs, and as field manager
# The last one: a token is read again now and then, and its file may be damaged.
_TRANSPORT = (aiohttp.ClientError, OSError, TimeoutError, ApiException, ConfigException)


@dataclass(frozen=True, slots=True)
class Page:
    """Some of the objects of a list.

    Args:
        items: the objects.
        version: the resource version of the whole list, to watch from.
    """

    items: list[Object]
    version: str


@dataclass(frozen=True, slots=True)
class Selection:
    """Which objects to list or watch: of one namespace or of all, by fields and labels in Kubernetes' grammar."""

    namespace: str = ""
    fields: str = ""
    labels: str = ""

    def query(self) -> dict[str, str]:
        """The parameters of a request."""
        chosen = {"fieldSelector": self.fields, "labelSelector": self.labels}
        return {name: value for name, value in chosen.items() if value}

    def __str__(self) -> str:
        chosen = [f"namespace {self.namespace}" if self.namespace else "", self.fields, self.labels]
        return ", ".join(filter(None, chosen)) or "all"


EVERYTHING = Selection()


class KubernetesAPI:
    """Talks to one API server. Lives on one event loop.

    Args:
        client: the connection; whoever made it closes it.
        clock: tells our own time.
        deadline: how long a request may take, watches excepted.

    Attributes:
        calls: how often each verb was used on each resource, in the words of roles: `("create", "secrets")`; each try
            counts.
        ahead: by how much the API server's clock is ahead of ours, to about a second; None before it answered.
    """

    def __init__(self, client: ApiClient, *, clock: Clock, deadline: timedelta = DEADLINE) -> None:
        self.calls: Counter[tuple[str, str]] = Counter()
        self.ahead: timedelta | None = None
        self._date = ""
        self._client = client
        self._deadline = deadline.total_seconds()
        self._clock = clock

    async def get(self, resource: Resource, name: str, *, namespace: str = "") -> Object:
        """One object.

        Raises:
            MissingError: it is certain that there is none.
            AccessRefused, Exhausted, NotReady: it could not be looked at.
        """
        return await self._ask("get", resource, resource.path(name, namespace=namespace))

    async def pages(self, resource: Resource, selection: Selection = EVERYTHING) -> AsyncIterator[Page]:
        """All objects, a few hundred at a time.

        Raises:
            WatchExpired: it took so long that the rest of the list is no longer kept: begin anew.
            MissingError: the API server does not serve this kind.
            AccessRefused, Exhausted, NotReady: they could not be looked at.
        """
        query = selection.query() | {"limit": str(_PAGE)}
        while True:
            page = await self._ask("list", resource, resource.path(namespace=selection.namespace), query=query)
            items, version = page.get("items") or [], text(page, "metadata", "resourceVersion")
            if not isinstance(items, list) or not version:  # not to be taken for a list of nothing
                raise NotReady(f"list {resource}: the answer is no list")
            yield Page([item for item in items if isinstance(item, dict)], version)
            if not (more := text(page, "metadata", "continue")):
                return
            query["continue"] = more

    async def create(self, resource: Resource, body: Object, *, namespace: str = "", subresource: str = "") -> Object:
        """Create an object or a review, and return what the API server made of it.

        Raises:
            ConflictError: there is one of that name.
            MissingError: its namespace is gone.
            ObjectRefused, AccessRefused, Exhausted, NotReady: it did not work.
        """
        name = str(object_of(body.get("metadata")).get("name", "")) if subresource else ""
        path = resource.path(name, namespace=namespace, subresource=subresource)
        return await self._ask("create", resource, path, body=_typed(resource, body), subresource=subresource)

    async def replace(self, resource: Resource, body: Object, *, subresource: str = "") -> Object:
        """Replace the object whose resource version the new one carries, and return it (see `create`).

        Raises:
            ConflictError: it was changed since.
            MissingError: it is gone.
            ObjectRefused, AccessRefused, Exhausted, NotReady: it did not work.
        """
        metadata = object_of(body.get("metadata"))
        path = resource.path(
            str(metadata["name"]), namespace=str(metadata.get("namespace", "")), subresource=subresource
        )
        return await self._ask("update", resource, path, body=_typed(resource, body), subresource=subresource)

    async def patch(
        self, resource: Resource, name: str, patch: Object, *, namespace: str = "", subresource: str = ""
    ) -> Object:
        """Change some members of an object (RFC 7396), and only in the version that the patch names, if it names one.

        Raises:
            IstioAuthError: as for `replace`.
        """
        path = resource.path(name, namespace=namespace, subresource=subresource)
        return await self._ask("patch", resource, path, body=patch, subresource=subresource)

    async def delete(
        self, resource: Resource, name: str, *, namespace: str = "", uid: str = "", version: str = ""
    ) -> None:
        """Delete an object, if it is still that one and in that version.

        Raises:
            MissingError: it is gone already.
            ConflictError: it is another one by now, or was changed.
            AccessRefused, Exhausted, NotReady: it did not work.
        """
        wanted = {"uid": uid, "resourceVersion": version}
        preconditions: Object = {key: value for key, value in wanted.items() if value}
        body: Object = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": preconditions}
        await self._ask("delete", resource, resource.path(name, namespace=namespace), body=body)

    async def read(self, path: str) -> Object:
        """A document that belongs to no resource: discovery, published keys.

        Raises:
            MissingError: it is not served.
            AccessRefused, Exhausted, NotReady: it could not be read.
        """
        return await self._send("get", path)

    async def serves(self, resource: Resource) -> bool:
        """Whether the API server knows this kind in this version.

        Raises:
            AccessRefused, Exhausted, NotReady: it could not be found out.
        """
        try:
            found = (await self.read(resource.root)).get("resources")
        except MissingError:
            return False
        if not isinstance(found, list):
            raise NotReady(f"get {resource.root}: the answer is no list of kinds")
        return any(object_of(one).get("name") == resource.plural for one in found)

    @asynccontextmanager
    async def watch(
        self, resource: Resource, version: str, selection: Selection = EVERYTHING, *, lasting: timedelta
    ) -> AsyncIterator[AsyncIterator[Object]]:
        """The changes since a version, as they come: objects with `type` and `object` (Kubernetes' WatchEvent).

        Args:
            resource: of which kind.
            version: from which resource version on.
            selection: of which objects.
            lasting: after how long the API server ends the watch by itself.

        Raises:
            WatchExpired: the version is no longer known; also while iterating.
            AccessRefused, Exhausted, NotReady: it could not be opened, or broke.
        """
        query = selection.query() | {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(int(lasting.total_seconds())),
        }
        self.calls["watch", str(resource)] += 1
        path = resource.path(namespace=selection.namespace)
        response = await self._stream(path, urlencode(query))
        try:
            async with aclosing(_events(response, path)) as events:
                yield events
        finally:
            response.close()

    async def _stream(self, path: str, query: str) -> aiohttp.ClientResponse:
        """The answer to a watch, when its head has come."""
        unlimited = aiohttp.ClientTimeout(total=None, sock_connect=self._deadline)
        try:
            async with asyncio.timeout(self._deadline):
                response = await self._request("GET", f"{path}?{query}", None, "", unlimited)
                if response.status == HTTPStatus.OK:
                    return response
                try:
                    await _content(response, "watch", path)
                finally:
                    response.close()
        except _TRANSPORT as error:
            raise unreachable(error) from error
        raise NotReady(f"watch {path}: status {response.status}")

    async def _ask(
        self,
        verb: str,
        resource: Resource,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Object | None = None,
        subresource: str = "",
    ) -> Object:
        asked = f"{resource}/{subresource}" if subresource else str(resource)
        answer = await self._send(verb, f"{path}?{urlencode(query)}" if query else path, body, asked=asked)
        if not text(answer, "kind"):  # every object has one: not to be taken for an object without anything in it
            raise NotReady(f"{verb} {path}: the answer is not one of Kubernetes")
        return answer

    async def _send(self, verb: str, path: str, body: Object | None = None, *, asked: str = "") -> Object:
        """Send a request, and again if the server says when to; each try has the whole deadline."""
        attempt = 0
        while True:
            if asked:
                self.calls[verb, asked] += 1
            try:
                return await self._send_once(verb, path, body)
            except Exhausted as error:
                attempt += 1
                if attempt == _PATIENCE or error.retry_after is None or error.retry_after > _LONGEST_WAIT:
                    raise
                await asyncio.sleep(error.retry_after.total_seconds())

    async def _send_once(self, verb: str, path: str, body: Object | None) -> Object:
        kind = _MERGE_PATCH if verb == "patch" else "application/json"
        limit = aiohttp.ClientTimeout(total=self._deadline)
        try:
            response = await self._request(_METHODS[verb], path, body, kind, limit)
            try:
                return await _content(response, verb, path)
            finally:
                response.release()
        except _TRANSPORT as error:
            raise unreachable(error) from error

    async def _request(
        self, method: str, path: str, body: Object | None, kind: str, limit: aiohttp.ClientTimeout
    ) -> aiohttp.ClientResponse:
        headers = {"Accept": _ACCEPTED, "User-Agent": _OURSELVES} | ({"Content-Type": kind} if kind else {})
        await self._client.update_params_for_auth(headers, [], ["BearerToken"], path, method, body)
        answer = await self._client.call_api(
            method, self._client.configuration.host + path, headers, body, _request_timeout=limit
        )
        response = answer.response
        assert isinstance(response, aiohttp.ClientResponse)
        self._note_date(response.headers.get("Date", ""))
        return response

    def _note_date(self, date: str) -> None:
        """Note how far the clocks differ, once for each new value of the header (it has whole seconds)."""
        if date == self._date:
            return
        self._date = date
        with suppress(ValueError, TypeError):
            self.ahead = parsedate_to_datetime(date) - self._clock.now()


_METHODS = {
    "get": "GET",
    "list": "GET",
    "create": "POST",
    "update": "PUT",
    "patch": "PATCH",
    "delete": "DELETE",
}


async def _events(response: aiohttp.ClientResponse, path: str) -> AsyncGenerator[Object]:
    try:
        async for line in _lines(response):
            event = object_of(json.loads(line))
            if event.get("type") == "ERROR":
                status = object_of(event.get("object"))
                code = status.get("code")
                raise refusal("watch", path, code if isinstance(code, int) else 500, text(status, "message"))
            yield event
    except (*_TRANSPORT, ValueError) as error:
        raise unreachable(error) from error


async def _lines(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Lines of any length: aiohttp limits its own, so that one large object would end every watch of its kind."""
    begun: list[bytes] = []
    async for chunk in response.content.iter_any():
        *ended, rest = chunk.split(b"\n")
        for end in ended:
            yield b"".join((*begun, end))
            begun.clear()
        begun.append(rest)
    if last := b"".join(begun):
        yield last


async def _content(response: aiohttp.ClientResponse, verb: str, path: str) -> Object:
    """What an answer says.

    Raises:
        IstioAuthError: it is a refusal.
    """
    content = await response.read()
    refused = response.status >= HTTPStatus.MULTIPLE_CHOICES
    try:
        said = object_of(json.loads(content))
    except ValueError:
        if not refused:
            raise aiohttp.ClientPayloadError("the answer is no JSON") from None
        said = {"message": content.decode(errors="replace")[:300]}
    if refused:
        raise refusal(verb, path, response.status, text(said, "message"), response.headers.get("Retry-After", ""))
    return said


def _typed(resource: Resource, body: Object) -> Object:
    return {"apiVersion": resource.api_version, "kind": resource.kind} | body
