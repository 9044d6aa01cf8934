"""The CSI node plugin, wired: its volumes, the pods' sockets, and the two sockets on which the kubelet calls.

The kubelet is root, and so may be whoever runs this agent: nobody else gets in. The socket for registration is made
last, when all volumes are served again, for the kubelet calls as soon as it sees it; a restart makes it anew, and so
registers again.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from pathlib import Path

from istio_auth.clock import Clock
from istio_auth.daemon.output import iso
from istio_auth.door import Door, UnixCaller
from istio_auth.door.unix_socket import check_path
from istio_auth.errors import IstioAuthError, NotAuthorized
from istio_auth.files import private_folder
from istio_auth.rpc.server import Limits, RpcServer
from istio_auth.strict_json import JSON
from node_agent.admin.status import svid_document
from node_agent.ca_client.istio_contract import IstioClient
from node_agent.ca_client.port import Calls
from node_agent.config import Config
from node_agent.csi.attributes import LONGEST_SOCKET
from node_agent.csi.folder import CONTENT, KEY_LENGTH
from node_agent.csi.mounts import BindMounts, Mounts
from node_agent.csi.pod_sockets import PodSockets
from node_agent.csi.publication import KUBELETS_OWN, Place
from node_agent.csi.services import IdentityService, NodeService, RegistrationService
from node_agent.csi.volume import Means, Volume
from node_agent.csi.volumes import Volumes
from node_agent.file_system import is_in_memory, on_a_disk
from node_agent.metrics import Metrics
from node_agent.sync import Consumers
from node_agent.trust import Trust

_DRAIN = timedelta(seconds=2)


class Plugin:
    """The plugin. Made on a thread, because it makes its folder; runs on one event loop.

    Args:
        config: the settings.
        calls: the way to the CA, without a certificate of our own.
        trust: whom we trust.
        clock: tells the time.
        metrics: counts.
        mounts: shows volumes to pods; bind mounts by default.

    Raises:
        ConfigurationError: there is no place for volumes.
    """

    def __init__(
        self,
        config: Config,
        calls: Calls,
        *,
        trust: Trust,
        clock: Clock,
        metrics: Metrics,
        mounts: Mounts | None = None,
    ) -> None:
        self._settings, self._metrics = config.csi, metrics
        place = Place(config.trust_domain, config.csi.kubelet_folder)
        ca = IstioClient(calls, timeout=config.ca_timeout, metadata=config.istio_ca.metadata)
        means = Means(ca, trust, config.trust_domain, clock, metrics)
        self._sockets = PodSockets(config.trust_domain, config.limits, metrics)
        parent = private_folder(volumes_folder(config))
        self.volumes = Volumes(parent, place, means, mounts=mounts or BindMounts(), sockets=self._sockets)
        self._registration = RegistrationService(config.csi)
        version, self._started = importlib.metadata.version("istio-auth"), False
        self._services = [
            IdentityService(config.csi.driver, version, lambda: self._started).service(),
            NodeService(config.csi, config.name, place, volumes=self.volumes, metrics=metrics).service(),
            self._registration.service(),
        ]

    @property
    def is_registered(self) -> bool | None:
        """Whether the kubelet has taken us; None while it has not said."""
        return self._registration.registered

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Serve from entering to leaving. What pods see stays when we leave.

        Raises:
            ConfigurationError: a socket can not be made where it is to be.
            NotReady: another process listens there.
        """
        endpoint = self._settings.endpoint
        assert endpoint is not None
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._sockets)
            stack.push_async_callback(self.volumes.end)
            await self.volumes.restore()
            door = await stack.enter_async_context(Door(on_refused=self._refused))
            limits = Limits(deadline=self._settings.publish_timeout + timedelta(seconds=10), in_flight=1000)
            server = RpcServer(door, self._services, limits=limits)
            await server.start()
            stack.push_async_callback(server.stop, _DRAIN)
            stack.callback(door.stop_listening)
            await asyncio.to_thread(endpoint.parent.mkdir, mode=0o750, parents=True, exist_ok=True)
            self._started = True
            await door.listen_unix(endpoint, name="csi", admit=_only_the_kubelet)
            registration = self._settings.registration_socket
            await door.listen_unix(registration, name="csi-registration", admit=_only_the_kubelet)
            yield

    def consumers(self) -> Consumers:
        """Who in pods is served the bundle of our own trust domain, and who of them has taken the present one."""
        return sum((each.consumers() for each in self.volumes.all()), self._sockets.consumers())

    def document(self) -> dict[str, JSON]:
        """What an operator is told."""
        return {
            "driver": self._settings.driver,
            "registered": self._registration.registered,
            "trouble": self._registration.trouble,
            "volumes": [_row(each) for each in sorted(self.volumes.all(), key=lambda each: each.publication.pod)],
        }

    def _refused(self, listener: str, _error: IstioAuthError) -> None:
        self._metrics.callers_refused.labels(listener).inc()


def measure(metrics: Metrics, plugin: Plugin | None) -> None:
    """Show what can be measured of the plugin; without one, that there is nothing."""

    def volumes() -> list[Volume]:
        return list(plugin.volumes.all()) if plugin else []

    gauge = metrics.gauge
    gauge("csi_volumes", "Volumes that pods of this node see", lambda: len(volumes()))
    gauge(
        "csi_volumes_without_svid",
        "Of these, how many have no live certificate",
        lambda: sum(each.held is None for each in volumes()),
    )
    gauge("csi_registered", "Whether the kubelet has registered us", lambda: bool(plugin and plugin.is_registered))


def volumes_folder(config: Config) -> Path:
    """Where volumes are kept.

    Raises:
        ConfigurationError: it is on a disk, or its path is too long for sockets in it.
    """
    folder = config.csi.volumes_folder or config.run_folder / "csi"
    check_path(folder / ("x" * KEY_LENGTH) / CONTENT / ("x" * LONGEST_SOCKET))
    if not config.allow_disk_cache and not is_in_memory(folder):
        raise on_a_disk(folder, setting="csi.volumes_folder", whose="pods")
    return folder


def _only_the_kubelet(caller: UnixCaller) -> None:
    if caller.uid not in (0, os.geteuid()):
        raise NotAuthorized(f"{caller} is refused: only root and the agent's own user may call a CSI driver")


def _row(volume: Volume) -> JSON:
    token = volume.token
    return svid_document(volume.held, volume.what_is_wrong()) | {
        "volume": volume.publication.volume_id,
        "pod": volume.publication.pod,
        "pod_uid": volume.publication.context[f"{KUBELETS_OWN}pod.uid"],
        "form": volume.publication.attributes.form.value,
        "spiffe_id": str(volume.publication.spiffe_id),
        "token_ends": iso(token.ends) if token else None,
    }
