"""What a kubelet does with a CSI node plugin, over real gRPC: registers it, publishes, publishes again, unpublishes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

from google.protobuf.message import Message

from istio_auth.proto import csi_pb2 as csi
from istio_auth.proto import kubelet_registration_pb2 as registration
from istio_auth.rpc.channel import Channel, Response

OWN = "csi.storage.k8s.io/"
PATIENCE = timedelta(seconds=60)
DRIVER = "istio-auth"


@dataclass(frozen=True)
class Pod:
    """A pod with one volume."""

    name: str = "web-0"
    namespace: str = "shop"
    service_account: str = "web"
    attributes: Mapping[str, str] = field(default_factory=dict)
    fs_group: str = ""

    @property
    def volume_id(self) -> str:
        return f"csi-{self.namespace}-{self.name}"


def tokens(value: str, ends: datetime, audience: str = "istio-ca") -> str:
    """Tokens as the API server gives them to the kubelet."""
    return json.dumps({audience: {"token": value, "expirationTimestamp": f"{ends:%FT%TZ}"}})


class Kubelet:
    """A kubelet, from entering to leaving.

    Args:
        folder: its folder, with `plugins_registry` and `pods` in it.
        ends: when its tokens end.
    """

    def __init__(self, folder: Path, ends: datetime) -> None:
        self.folder, self.ends = folder, ends
        self.endpoint = folder / "csi.sock"
        self.registry = folder / "plugins_registry"
        for each in (self.registry, folder / "pods"):
            each.mkdir(parents=True, exist_ok=True)
        self._stack = AsyncExitStack()
        self._channel: Channel

    async def __aenter__(self) -> Self:
        self._channel = await self._stack.enter_async_context(Channel(f"unix:{self.endpoint}"))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def target(self, pod: Pod) -> Path:
        """Where the pod's volume is mounted."""
        return self.folder / "pods" / f"{pod.namespace}-{pod.name}"

    def pods(self) -> Iterator[Path]:
        """What is there of volumes."""
        return (self.folder / "pods").iterdir()

    def request(self, pod: Pod, token: str | None, *, in_secrets: bool = True) -> csi.NodePublishVolumeRequest:
        """What publishes a pod's volume."""
        mount = csi.VolumeCapability.MountVolume(volume_mount_group=pod.fs_group)
        request = csi.NodePublishVolumeRequest(
            volume_id=pod.volume_id,
            target_path=str(self.target(pod)),
            volume_capability=csi.VolumeCapability(mount=mount),
            readonly=True,
            volume_context={
                **pod.attributes,
                f"{OWN}pod.name": pod.name,
                f"{OWN}pod.namespace": pod.namespace,
                f"{OWN}pod.uid": f"uid-of-{pod.name}",
                f"{OWN}serviceAccount.name": pod.service_account,
                f"{OWN}ephemeral": "true",
            },
        )
        if token is not None:
            where = request.secrets if in_secrets else request.volume_context
            where[f"{OWN}serviceAccount.tokens"] = tokens(token, self.ends)
        return request

    async def publish(
        self, pod: Pod, token: str | None, *, within: timedelta = PATIENCE, in_secrets: bool = True
    ) -> None:
        """Publish a pod's volume, for the first time or again."""
        request = self.request(pod, token, in_secrets=in_secrets)
        await self.call("Node/NodePublishVolume", request, csi.NodePublishVolumeResponse, within=within)

    async def unpublish(self, pod: Pod) -> None:
        """Unpublish it."""
        request = csi.NodeUnpublishVolumeRequest(volume_id=pod.volume_id, target_path=str(self.target(pod)))
        await self.call("Node/NodeUnpublishVolume", request, csi.NodeUnpublishVolumeResponse)

    async def call(
        self, method: str, request: Message, response: type[Response], *, within: timedelta = PATIENCE
    ) -> Response:
        """Call the plugin."""
        return await self._channel.unary(f"/csi.v1.{method}", request, response, timeout=within)

    async def register(self) -> registration.PluginInfo:
        """Take the plugin as a kubelet does that sees its socket: ask who it is, ask its driver, tell it."""
        prefix = "/pluginregistration.Registration"
        async with Channel(f"unix:{self.registry / f'{DRIVER}-reg.sock'}") as channel:
            info = await channel.unary(
                f"{prefix}/GetInfo", registration.InfoRequest(), registration.PluginInfo, timeout=PATIENCE
            )
            async with Channel(f"unix:{info.endpoint}") as driver:
                node = await driver.unary(
                    "/csi.v1.Node/NodeGetInfo", csi.NodeGetInfoRequest(), csi.NodeGetInfoResponse, timeout=PATIENCE
                )
            status = registration.RegistrationStatus(plugin_registered=bool(node.node_id))
            await channel.unary(
                f"{prefix}/NotifyRegistrationStatus",
                status,
                registration.RegistrationStatusResponse,
                timeout=PATIENCE,
            )
        return info
