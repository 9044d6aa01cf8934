"""Pods on a node, as their authors make them and as they are seen from inside."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.cluster.client import JSON, Client
from tests.cluster.waiting import appears, eventually, vanishes
from tests.node import image
from tests.node.machine import KUBELET
from tests.node.node import Node

MOUNTED = "/identity"  # where containers see the volume of the driver
_READY = 240.0  # seconds that a pod has, on a machine that is busy
DRIVER = "istio-auth"
_RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "runAsNonRoot": True,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}


def inside(command: str, *words: object) -> tuple[str, ...]:
    """The words that start a program of `tests.node.inside` in a pod that sees this machine."""
    python = ("env", f"PYTHONPATH={image.CHECKOUT}", "PYTHONDONTWRITEBYTECODE=1", sys.executable)
    return (*python, "-m", "tests.node.inside", command, *map(str, words))


class PodFailed(Exception):
    """A program in a pod ended badly; the message holds what it said."""


@dataclass(frozen=True)
class PodSpec:
    """What a pod's author writes.

    Args:
        name: the pod's name.
        attributes: of the volume of the driver; None for a pod without one.
        service_account: whose identity it has.
        user: as whom its containers run; as root if not given.
        fs_group: the group of its volumes.
        read_only: whether the volume is asked for as it must be.
        sees_machine: whether it sees the programs of this machine, Python and this project among them.
        is_restricted: whether it gives up all that the restricted level of Pod Security wants given up.
        command: what its container runs; it sleeps if none is given.
        volumes: more volumes.
        mounts: where the container sees them.
    """

    name: str = "web"
    attributes: Mapping[str, str] | None = field(default_factory=dict)
    service_account: str = "default"
    user: int | None = None
    fs_group: int | None = None
    read_only: bool = True
    sees_machine: bool = True
    is_restricted: bool = False
    command: Sequence[str] = ()
    volumes: Sequence[JSON] = ()
    mounts: Sequence[JSON] = ()

    def manifest(self, node: str) -> JSON:
        """The object."""
        volumes, mounts = image.volumes() if self.sees_machine else ([], [])
        if self.attributes is not None:
            csi = {"driver": DRIVER, "readOnly": self.read_only, "volumeAttributes": dict(self.attributes)}
            volumes = [*volumes, {"name": "identity", "csi": csi}]
            mounts = [*mounts, {"name": "identity", "mountPath": MOUNTED, "readOnly": True}]
        container = {
            "name": "main",
            "image": image.NAME,
            "imagePullPolicy": "Never",
            "volumeMounts": [*mounts, *self.mounts],
            **({"command": list(self.command)} if self.command else {}),
            **({"securityContext": _RESTRICTED} if self.is_restricted else {}),
        }
        security = {"runAsUser": self.user, "runAsGroup": self.user, "fsGroup": self.fs_group}
        return {
            "metadata": {"name": self.name},
            "spec": {
                "nodeName": node,
                "serviceAccountName": self.service_account,
                "terminationGracePeriodSeconds": 1,
                "securityContext": {key: value for key, value in security.items() if value is not None},
                "containers": [container],
                "volumes": [*volumes, *self.volumes],
            },
        }


class Pods:
    """The pods of a namespace on a node.

    Args:
        node: the node.
        admin: who makes them.
        namespace: the namespace.
    """

    def __init__(self, node: Node, admin: Client, namespace: str) -> None:
        self.node, self.admin, self.namespace = node, admin, namespace

    async def create(self, spec: PodSpec | None = None) -> Pod:
        """Make a pod, and its service account if it is not there."""
        spec = spec or PodSpec()
        accounts = f"/api/v1/namespaces/{self.namespace}/serviceaccounts"
        if spec.service_account == "default":
            await appears(self.admin, f"{accounts}/default")
        elif await self.admin.find(f"{accounts}/{spec.service_account}") is None:
            await self.admin.create_service_account(self.namespace, spec.service_account)
        return await self.make(spec.manifest(self.node.name))

    async def make(self, manifest: JSON) -> Pod:
        """Make a pod of any kind."""
        return Pod(self, await self.admin.create(f"/api/v1/namespaces/{self.namespace}/pods", manifest))

    async def delete_all(self) -> None:
        """Delete all that are there, and wait until they are gone."""
        path = f"/api/v1/namespaces/{self.namespace}/pods"
        for each in await self.admin.list(path):
            await Pod(self, each).delete()

    async def start(self, spec: PodSpec | None = None) -> Pod:
        """Make a pod, and wait until it runs."""
        pod = await self.create(spec)
        await pod.runs()
        return pod


class Pod:
    """A pod that was made."""

    def __init__(self, pods: Pods, made: JSON) -> None:
        self._pods = pods
        self.name: str = made["metadata"]["name"]
        self.uid: str = made["metadata"]["uid"]
        self.path = f"/api/v1/namespaces/{pods.namespace}/pods/{self.name}"
        self.folder = KUBELET / "pods" / self.uid

    async def state(self) -> JSON:
        """The object, as it is now."""
        return await self._pods.admin.get(self.path)

    async def runs(self) -> None:
        """Wait until all its containers do; what is in the way is told."""
        try:
            await eventually(self._is_ready, within=_READY)
        except TimeoutError:
            raise TimeoutError(f"{self.name} does not run: {await self.events()}") from None

    async def events(self) -> list[str]:
        """What the kubelet says of it."""
        selector = f"involvedObject.uid={self.uid}"
        found = await self._pods.admin.list(f"/api/v1/namespaces/{self._pods.namespace}/events", fieldSelector=selector)
        return [f"{each['reason']}: {each['message']}" for each in found]

    async def is_told(self, words: str) -> str:
        """Wait for an event with these words in it; that."""

        async def look() -> str | None:
            return next((each for each in await self.events() if words in each), None)

        return await eventually(look, within=_READY)

    async def is_refused(self, words: str) -> bool:
        """Whether there is an event with these words in it before it runs."""

        async def look() -> str | None:
            if any(words in each for each in await self.events()):
                return "refused"
            return "let in" if await self._is_ready() else None

        return await eventually(look, within=_READY) == "refused"

    async def _is_ready(self) -> bool:
        conditions = (await self.state())["status"].get("conditions", ())
        return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)

    async def pid(self) -> int:
        """The process id of its container's first process."""
        (status,) = (await self.state())["status"]["containerStatuses"]
        return await asyncio.to_thread(self._pods.node.pid_of, status["containerID"])

    async def seen(self, path: str = MOUNTED) -> Path:
        """What its container sees at a path, from outside."""
        return Path(f"/proc/{await self.pid()}/root{path}")

    async def run(self, *command: object) -> str:
        """What a program prints that runs in its container, as its user.

        Raises:
            PodFailed: it ended badly.
        """
        return await self._kubectl("exec", self.name, "--", *map(str, command))

    async def told(self, command: str, *words: object) -> list[JSON]:
        """What a program of `tests.node.inside` tells that runs in its container."""
        return [json.loads(line) for line in (await self.run(*inside(command, *words))).splitlines()]

    async def address(self) -> str:
        """Its address."""
        return str((await self.state())["status"]["podIP"])

    async def says(self, words: str) -> None:
        """Wait until its container has printed these words."""

        async def look() -> bool:
            return words in await self._kubectl("logs", self.name)

        await eventually(look)

    def is_mounted(self) -> bool:
        """Whether any volume of a CSI driver is mounted for it."""
        return f" {self.folder}/volumes/kubernetes.io~csi/" in Path("/proc/self/mounts").read_text()

    async def delete(self) -> None:
        """Delete it, and wait until it is gone."""
        await self._pods.admin.delete(self.path)
        await self.is_gone()

    async def is_gone(self) -> None:
        """Wait until nobody knows of it any more."""
        await vanishes(self._pods.admin, self.path)

    async def _kubectl(self, *words: str) -> str:
        plane = self._pods.node.plane
        process = await asyncio.create_subprocess_exec(
            *(plane.binaries / "kubectl", f"--kubeconfig={plane.kubeconfig}", f"--namespace={self._pods.namespace}"),
            *words,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        if process.returncode != 0:
            raise PodFailed(err.decode())
        return out.decode()
