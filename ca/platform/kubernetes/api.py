"""KubernetesAPI: the API server as this project needs it, a few verbs on plain JSON objects, with errors of ours.

Configuration, credentials and transport are those of the official client (`kubernetes.aio`), with one `ApiClient` of
its own; its typed models are left aside, because ten thousand of them cost too much. What the errors mean is in
`ca.platform.kubernetes.refusals`; an answer of "too many requests" is waited for as the server says, a few times.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from urllib.parse import urlencode

import aiohttp
from kubernetes.aio.client import ApiClient
from kubernetes.aio.client.exceptions import ApiException

from ca.platform.kubernetes.objects import Object, object_of, text
from ca.platform.kubernetes.refusals import refusal, unreachable
from ca.platform.kubernetes.resources import Resource
from istio_auth.clock import Clock
from istio_auth.errors import Exhausted, MissingError

DEADLINE = timedelta(seconds=15)
_PAGE = 500
_PATIENCE = 4  # how often a request is repeated that was answered with 429
_LONGEST_WAIT = 30.0
_MERGE_PATCH = "application/merge-patch+json"
_ACCEPTED = "application/json, application/jwk-set+json"  # the published keys come as the latter, or not at all
_TRANSPORT = (aiohttp.ClientError, OSError, TimeoutError, ApiException)


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
        ahead: by how much its clock is ahead of ours, to about a second; None before it answered.
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
            WatchExpired: it took so long that the rest is of another state: begin anew.
            MissingError: the API server does not serve this kind.
            AccessRefused, Exhausted, NotReady: they could not be looked at.
        """
        query = selection.query() | {"limit": str(_PAGE)}
        while True:
            page = await self._ask("list", resource, resource.path(namespace=selection.namespace), query=query)
            metadata = object_of(page.get("metadata"))
            items = page.get("items")
            yield Page(
                [item for item in items if isinstance(item, dict)] if isinstance(items, list) else [],
                str(metadata.get("resourceVersion", "")),
            )
            if not (more := metadata.get("continue")):
                return
            query["continue"] = str(more)

    async def create(self, resource: Resource, body: Object, *, namespace: str = "", subresource: str = "") -> Object:
        """Make an object, or a review; what the API server made of it.

        Raises:
            ConflictError: there is one of that name.
            MissingError: its namespace is gone.
            ObjectRefused, AccessRefused, Exhausted, NotReady: it did not work.
        """
        name = str(object_of(body.get("metadata")).get("name", "")) if subresource else ""
        path = resource.path(name, namespace=namespace, subresource=subresource)
        return await self._ask("create", resource, path, body=_typed(resource, body), subresource=subresource)

    async def replace(self, resource: Resource, body: Object, *, subresource: str = "") -> Object:
        """Put an object in the place of the one whose resource version it carries (see `create`).

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
        """Change some members of an object (RFC 7396), under the resource version in the patch if there is one."""
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
            AccessRefused, Exhausted, NotReady: it could not be told.
        """
        try:
            found = (await self.read(resource.root)).get("resources")
        except MissingError:
            return False
        return isinstance(found, list) and any(object_of(one).get("name") == resource.plural for one in found)

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
        opening = aiohttp.ClientTimeout(total=None, sock_connect=self._deadline)
        try:
            async with asyncio.timeout(self._deadline):
                response = await self._request("GET", f"{path}?{urlencode(query)}", None, "", opening)
        except _TRANSPORT as error:
            raise unreachable(error) from error
        try:
            if response.status != HTTPStatus.OK:
                said = text(await _content(response), "message")
                raise refusal("watch", path, response.status, said, response.headers.get("Retry-After", ""))
            yield _events(response, path)
        finally:
            response.close()

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
        return await self._send(verb, f"{path}?{urlencode(query)}" if query else path, body, asked=asked)

    async def _send(self, verb: str, path: str, body: Object | None = None, *, asked: str = "") -> Object:
        """Send a request, again if the server says when; all of it within one deadline for each try."""
        attempt = 0
        while True:
            if asked:
                self.calls[verb, asked] += 1
            try:
                return await self._send_once(verb, path, body)
            except Exhausted as error:
                attempt += 1
                if attempt == _PATIENCE or error.retry_after is None:
                    raise
                await asyncio.sleep(min(error.retry_after.total_seconds(), _LONGEST_WAIT))

    async def _send_once(self, verb: str, path: str, body: Object | None) -> Object:
        kind = _MERGE_PATCH if verb == "patch" else "application/json"
        limit = aiohttp.ClientTimeout(total=self._deadline)
        try:
            response = await self._request(_METHODS[verb], path, body, kind, limit)
            try:
                content = await _content(response)
            finally:
                response.release()
        except _TRANSPORT as error:
            raise unreachable(error) from error
        if response.status >= HTTPStatus.BAD_REQUEST:
            raise refusal(
                verb, path, response.status, text(content, "message"), response.headers.get("Retry-After", "")
            )
        return content

    async def _request(
        self, method: str, path: str, body: Object | None, kind: str, limit: aiohttp.ClientTimeout
    ) -> aiohttp.ClientResponse:
        headers = {"Accept": _ACCEPTED} | ({"Content-Type": kind} if kind else {})
        await self._client.update_params_for_auth(headers, [], ["BearerToken"], path, method, body)
        answer = await self._client.call_api(
            method, self._client.configuration.host + path, headers, body, _request_timeout=limit
        )
        response = answer.response
        assert isinstance(response, aiohttp.ClientResponse)
        self._note_date(response.headers.get("Date", ""))
        return response

    def _note_date(self, date: str) -> None:
        """Note how far the clocks differ, once for each second that is told."""
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


async def _events(response: aiohttp.ClientResponse, path: str) -> AsyncIterator[Object]:
    try:
        async for line in response.content:
            event = object_of(json.loads(line))
            if event.get("type") == "ERROR":
                status = object_of(event.get("object"))
                code = status.get("code")
                raise refusal("watch", path, code if isinstance(code, int) else 500, text(status, "message"))
            yield event
    except (*_TRANSPORT, ValueError) as error:
        raise unreachable(error) from error


async def _content(response: aiohttp.ClientResponse) -> Object:
    content = await response.read()
    try:
        return object_of(json.loads(content))
    except ValueError:
        if response.status < HTTPStatus.BAD_REQUEST:
            raise aiohttp.ClientPayloadError("the answer is no JSON") from None
        return {"message": content.decode(errors="replace")[:300]}


def _typed(resource: Resource, body: Object) -> Object:
    return {"apiVersion": resource.api_version, "kind": resource.kind} | body
