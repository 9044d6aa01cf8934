"""A real istiod on a control plane, and the accounts, nodes and pods that it is asked about."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Self

from tests.cluster.client import JSON, Client
from tests.cluster.control_plane import ControlPlane
from tests.cluster.istio.build import ISTIO
from tests.cluster.running_ca import published_roots
from tests.cluster.server import Server
from tests.fakes.processes import status
from tests.fakes.tcp import closed_port

NAMESPACE, AGENT = "istio-system", "istio-node-agent"
AUDIENCE = "istio-ca"


@dataclass(frozen=True)
class Istiod:
    """An istiod; `kill` and `start` in between, at the same address with the same settings.

    Args:
        server: its process.
        port: where its CA listens, over TLS.
    """

    server: Server
    port: int

    @classmethod
    async def on(cls, plane: ControlPlane, admin: Client, settings: Mapping[str, object] | None = None) -> Self:
        """One that ends with the control plane, once it is ready.

        Args:
            plane: where.
            admin: its administrator.
            settings: more of its environment.
        """
        if await admin.find(f"/api/v1/namespaces/{NAMESPACE}") is None:
            await admin.create_namespace(NAMESPACE)
        port, health = closed_port(), closed_port()
        environment = {
            "POD_NAMESPACE": NAMESPACE,
            "POD_NAME": "istiod",
            "CA_TRUSTED_NODE_ACCOUNTS": f"{NAMESPACE}/{AGENT}",
            "INJECTION_WEBHOOK_CONFIG_NAME": "",
            "VALIDATION_WEBHOOK_CONFIG_NAME": "",
            **(settings or {}),
        }
        addresses = {
            "httpAddr": health,
            "httpsAddr": closed_port(),
            "secureGRPCAddr": port,
            "monitoringAddr": closed_port(),
        }
        command = (
            *("env", *(f"{name}={value}" for name, value in environment.items())),
            *(ISTIO.programs() / "pilot-discovery", "discovery", "--kubeconfig", plane.kubeconfig),
            *(word for name, number in addresses.items() for word in (f"--{name}", f"127.0.0.1:{number}")),
            *("--grpcAddr", "", "--ctrlz_port", "0", "--log_output_level", "default:info,serverca:debug"),
        )
        start = partial(
            plane.add, command, log="istiod.log", is_ready=lambda: status(health, "/ready") == HTTPStatus.OK
        )
        return cls(await asyncio.to_thread(start), port)

    async def kill(self) -> None:
        """End it without a word."""
        await asyncio.to_thread(self.server.kill)

    async def start(self) -> None:
        """Start it again, and wait until it is ready."""
        await asyncio.to_thread(self.server.start)


@dataclass(frozen=True)
class Mesh:
    """A cluster whose CA is istiod, with a node that has our agent's pod.

    Args:
        plane: the control plane.
        admin: its administrator.
        istiod: the CA.
        node: the name of a node.
        agent: the agent's pod on it.
        namespace: for workloads.
    """

    plane: ControlPlane
    admin: Client
    istiod: Istiod
    node: str
    agent: JSON
    namespace: str

    @classmethod
    async def on(cls, plane: ControlPlane, admin: Client, istiod: Istiod) -> Self:
        """A mesh with a new node and a new namespace."""
        name = uuid.uuid4().hex[:8]
        node, namespace = f"node-{name}", f"shop-{name}"
        await admin.create_node(node)
        await admin.create_namespace(namespace)
        if await admin.find(f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/{AGENT}") is None:
            await admin.create_service_account(NAMESPACE, AGENT)
        agent = await admin.create_pod(NAMESPACE, f"agent-{name}", service_account=AGENT, node=node)
        return cls(plane, admin, istiod, node, agent, namespace)

    async def roots(self) -> str:
        """The roots as istiod publishes them to the agent's pod."""
        return await published_roots(self.admin, NAMESPACE)

    async def agent_token(self, audience: str = AUDIENCE) -> str:
        """A token as the kubelet projects it into the agent's pod."""
        return await self.admin.service_account_token(NAMESPACE, AGENT, audiences=[audience], pod=self.agent)

    async def account(self, name: str) -> str:
        """A new service account; its SPIFFE ID."""
        await self.admin.create_service_account(self.namespace, name)
        return f"spiffe://cluster.local/ns/{self.namespace}/sa/{name}"

    async def pod(self, account: str, node: str | None = None) -> JSON:
        """A new pod of an account, on our node if none is named."""
        name = f"{account}-{uuid.uuid4().hex[:8]}"
        return await self.admin.create_pod(self.namespace, name, service_account=account, node=node or self.node)

    async def pod_token(self, pod: JSON, audience: str = AUDIENCE) -> str:
        """A token as the kubelet gets it for a pod."""
        account = pod["spec"]["serviceAccountName"]
        return await self.admin.service_account_token(self.namespace, account, audiences=[audience], pod=pod)


def written(path: Path, content: str) -> Path:
    """The path of a file with this content, which takes the place of the old one at once."""
    unfinished = path.with_suffix(".new")
    unfinished.touch(0o600)
    unfinished.write_text(content)
    unfinished.rename(path)
    return path
