"""A plain client of the API server for tests: JSON in and out, whoever it is that asks."""

from __future__ import annotations

import json
import ssl
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeAlias

import aiohttp

JSON: TypeAlias = dict[str, Any]

_JSON = "application/json"
_MERGE = "application/merge-patch+json"


class Refused(Exception):
    """The API server answered with an error.

    Args:
        status: its HTTP status.
        body: the `Status` that came with it.
    """

    def __init__(self, status: int, body: JSON) -> None:
        super().__init__(f"{status} {body.get('reason')}: {body.get('message')}")
        self.status, self.body = status, body


class Client:
    """A client, to be entered in the event loop that uses it. Paths are those of the API: `/api/v1/namespaces`.

    Args:
        url: where the API server is.
        tls: what it is trusted by, with a client certificate or without.
        token: a bearer token to show.
    """

    def __init__(self, url: str, tls: ssl.SSLContext, *, token: str | None = None) -> None:
        self._url, self._tls = url, tls
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(ssl=self._tls, limit=50)
        self._session = aiohttp.ClientSession(self._url, connector=connector, headers=self._headers)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._session.close()

    async def request(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        content_type: str = _JSON,
        params: Mapping[str, str] | None = None,
    ) -> tuple[int, JSON]:
        """Send any request; the status and the object of the answer, whatever they are."""
        data = None if body is None else json.dumps(body)
        headers = {} if body is None else {"Content-Type": content_type}
        async with self._session.request(method, path, data=data, headers=headers, params=params) as answer:
            text = await answer.text()
        try:
            return answer.status, json.loads(text)
        except ValueError:  # health checks and refusals at the door are plain text
            return answer.status, {"message": text}

    async def get(self, path: str) -> JSON:
        """The object at a path.

        Raises:
            Refused: for one that is not there, with status 404.
        """
        return await self._fine("GET", path)

    async def find(self, path: str) -> JSON | None:
        """The object at a path, or None if it is not there.

        Raises:
            Refused: for any other reason.
        """
        status, body = await self.request("GET", path)
        return None if status == 404 else _checked(status, body)

    async def list(self, path: str, **params: str) -> Sequence[JSON]:
        """The objects of a collection; `params` may be `labelSelector` and the like.

        Raises:
            Refused: the API server said no.
        """
        items: list[JSON] = (await self._fine("GET", path, params=params))["items"]
        return items

    async def create(self, path: str, body: JSON) -> JSON:
        """Create an object in a collection; the object as it was stored.

        Raises:
            Refused: the API server said no.
        """
        return await self._fine("POST", path, body)

    async def replace(self, path: str, body: JSON) -> JSON:
        """Put an object in place of one; a conflict if its `resourceVersion` is not the stored one.

        Raises:
            Refused: the API server said no.
        """
        return await self._fine("PUT", path, body)

    async def patch(self, path: str, body: JSON) -> JSON:
        """Merge fields into an object; None removes one.

        Raises:
            Refused: the API server said no.
        """
        return await self._fine("PATCH", path, body, content_type=_MERGE)

    async def delete(self, path: str, *, options: JSON | None = None) -> JSON:
        """Delete an object; what is known of it, or of the deletion.

        Raises:
            Refused: the API server said no.
        """
        return await self._fine("DELETE", path, options)

    async def create_namespace(self, name: str, *, labels: Mapping[str, str] | None = None) -> JSON:
        """A namespace."""
        return await self.create("/api/v1/namespaces", {"metadata": {"name": name, "labels": dict(labels or {})}})

    async def create_service_account(self, namespace: str, name: str) -> JSON:
        """A service account."""
        return await self.create(f"/api/v1/namespaces/{namespace}/serviceaccounts", {"metadata": {"name": name}})

    async def create_node(self, name: str) -> JSON:
        """A node that nothing runs on; pods may be bound to it."""
        return await self.create("/api/v1/nodes", {"metadata": {"name": name}})

    async def create_pod(
        self,
        namespace: str,
        name: str,
        *,
        service_account: str = "default",
        node: str | None = None,
        volumes: Sequence[JSON] = (),
    ) -> JSON:
        """A pod, bound to a node if one is named. No kubelet starts it; a deletion is done at once.

        Args:
            namespace: its namespace.
            name: its name.
            service_account: whose identity it has; the account must be there.
            node: the node that it is bound to.
            volumes: of its spec. A kubelet gets tokens only for the audiences that one of them names, and may ask for
                pod certificates only of the signers that one of them names.

        Raises:
            Refused: the API server said no.
        """
        spec = {
            "serviceAccountName": service_account,
            "containers": [{"name": "main", "image": "none.invalid/none"}],
            "terminationGracePeriodSeconds": 0,  # nobody would confirm that it has ended
            "volumes": list(volumes),
            **({"nodeName": node} if node else {}),
        }
        return await self.create(f"/api/v1/namespaces/{namespace}/pods", {"metadata": {"name": name}, "spec": spec})

    async def service_account_token(
        self,
        namespace: str,
        name: str,
        *,
        audiences: Sequence[str] = (),
        expiration_seconds: int = 3600,
        pod: JSON | None = None,
    ) -> str:
        """A token by TokenRequest, as a kubelet gets one for a projected volume.

        Args:
            namespace: the service account's.
            name: the service account's.
            audiences: whom it is for; the API server itself if none is named.
            expiration_seconds: its life; the API server allows 600 and more.
            pod: the pod object that it is bound to, as `create_pod` returned it.

        Raises:
            Refused: the API server said no.
        """
        spec: JSON = {"audiences": list(audiences), "expirationSeconds": expiration_seconds}
        if pod is not None:
            identity = {key: pod["metadata"][key] for key in ("name", "uid")}
            spec["boundObjectRef"] = {"apiVersion": "v1", "kind": "Pod", **identity}
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"
        token: str = (await self.create(path, {"spec": spec}))["status"]["token"]
        return token

    async def _fine(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        content_type: str = _JSON,
        params: Mapping[str, str] | None = None,
    ) -> JSON:
        return _checked(*await self.request(method, path, body, content_type=content_type, params=params))


def _checked(status: int, body: JSON) -> JSON:
    if status >= 400:
        raise Refused(status, body)
    return body
