"""The part of a kubelet that tells of its pods: `GET /pods` over TLS on loopback for a token; misbehaves on request."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from aiohttp import web

from istio_auth.host_port import HostPort
from istio_auth.keys import new_private_key
from istio_auth.pem import write_certificates
from istio_auth.strict_json import JSON
from node_agent.attest.settings import KubernetesSettings
from tests.fakes.authority import FakeAuthority
from tests.fakes.key_server import Answer
from tests.fakes.tcp import closed_port
from tests.fakes.tls import stranger

TOKEN = "token-of-the-agents-account"
UID = "2c48913c-b29f-11e7-9350-020968147796"
CONTAINER = "9bca8d63d5fa610783847915bcff0ecac1273e5b4bed3f6fa1b07350e0135961"
PLACE = f"kubepods/burstable/pod{UID}/{CONTAINER}"


def pod(
    uid: str = UID,
    name: str = "web-0",
    *,
    namespace: str = "shop",
    account: str = "web",
    labels: Mapping[str, str] | None = None,
    containers: Mapping[str, str] | None = None,
) -> dict[str, JSON]:
    """An entry of the list, with what a kubelet tells besides.

    Args:
        uid: the pod's.
        name: the pod's.
        namespace: its namespace.
        account: its service account; none if empty.
        labels: its labels.
        containers: the names of those that run, by their ids.
    """
    return {
        "metadata": {"name": name, "namespace": namespace, "uid": uid, "labels": dict(labels or {})},
        "spec": {
            "nodeName": "node-1",
            "containers": [{"name": "app", "image": "web:1", "env": [{"name": "PASSWORD", "value": "secret"}]}],
            **({"serviceAccountName": account} if account else {}),
        },
        "status": {
            "phase": "Running",
            "containerStatuses": [
                {"name": name, "containerID": f"containerd://{container}", "ready": True}
                for container, name in (containers or {}).items()
            ],
        },
    }


class PodLister:
    """Serves from entering to leaving.

    Args:
        folder: where token and CA are written.
        dns_name: what its certificate names it.
    """

    def __init__(self, folder: Path, *, dns_name: str = "localhost") -> None:
        self.authority = FakeAuthority("kubelet.test")
        self.ca, self.token = folder / "kubelet-ca.pem", folder / "kubelet-token"
        self.ca.write_bytes(write_certificates([self.authority.root]))
        self.token.write_text(TOKEN)
        self.pods: list[JSON] = []
        self.answer: Answer | None = None  # in place of what is usual
        self.asked = 0
        self.port = closed_port()  # nobody else has it while we are away
        key = new_private_key()
        leaf = self.authority.leaf(uris=(), dns_names=(dns_name,))
        self.certificate = self.authority.sign(leaf, key.public_key())
        self._tls = stranger(server_side=True, chain=[self.certificate], key=key)
        self._runner: web.AppRunner

    def settings(self, **changes: object) -> KubernetesSettings:
        """How it is asked."""
        usual: dict[str, object] = {
            "kubelet": HostPort("localhost", self.port),
            "kubelet_ca": self.ca,
            "token_file": self.token,
        }
        return KubernetesSettings(**(usual | changes))  # type: ignore[arg-type]  # its fields, by name

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Serve, at the same port as before."""
        site = web.Application()
        site.add_routes([web.get("/pods", self._serve)])
        self._runner = web.AppRunner(site, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=self._tls, reuse_address=True).start()

    async def stop(self) -> None:
        """Be away."""
        await self._runner.cleanup()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        self.asked += 1
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return web.Response(status=401, text="Unauthorized")
        if self.answer is not None:
            return await self.answer(request)
        document: dict[str, JSON] = {"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": self.pods or None}
        return web.Response(text=json.dumps(document), content_type="application/json")
