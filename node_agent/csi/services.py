"""What the kubelet calls: CSI's Identity and Node, and its own plugin registration, so that no registrar is needed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import structlog
from google.protobuf.wrappers_pb2 import BoolValue

from istio_auth.errors import Code, IstioAuthError
from istio_auth.proto import csi_pb2 as csi
from istio_auth.proto import kubelet_registration_pb2 as kubelet
from istio_auth.rpc.method import Call, Method, Service
from node_agent.csi.pod_token import pod_token
from node_agent.csi.publication import Place, check_volume_id, checked_target, from_request
from node_agent.csi.settings import CSISettings
from node_agent.csi.volume import seconds_for
from node_agent.csi.volumes import Volumes
from node_agent.metrics import Metrics

_OUTCOMES = {Code.MALFORMED: "refused", Code.NOT_READY: "unavailable", Code.CONFLICT: "busy"}
log = structlog.get_logger()


class IdentityService:
    """`csi.v1.Identity`.

    Args:
        driver: the driver's name.
        version: ours.
        ready: whether pods can be served.
    """

    def __init__(self, driver: str, version: str, ready: Callable[[], bool]) -> None:
        self._driver, self._version, self._ready = driver, version, ready

    def service(self) -> Service:
        """What a server serves."""
        return Service(
            "csi.v1.Identity",
            {
                "GetPluginInfo": Method.unary(self._info, csi.GetPluginInfoRequest, csi.GetPluginInfoResponse),
                "GetPluginCapabilities": Method.unary(
                    self._capabilities, csi.GetPluginCapabilitiesRequest, csi.GetPluginCapabilitiesResponse
                ),
                "Probe": Method.unary(self._probe, csi.ProbeRequest, csi.ProbeResponse),
            },
        )

    async def _info(self, _request: csi.GetPluginInfoRequest, _call: Call) -> csi.GetPluginInfoResponse:
        return csi.GetPluginInfoResponse(name=self._driver, vendor_version=self._version)

    async def _capabilities(
        self, _request: csi.GetPluginCapabilitiesRequest, _call: Call
    ) -> csi.GetPluginCapabilitiesResponse:
        return csi.GetPluginCapabilitiesResponse()

    async def _probe(self, _request: csi.ProbeRequest, _call: Call) -> csi.ProbeResponse:
        return csi.ProbeResponse(ready=BoolValue(value=self._ready()))


class NodeService:
    """`csi.v1.Node`.

    Args:
        settings: how long a publish may take, and whose tokens are taken.
        node: our name.
        place: where we are.
        volumes: all of them.
        metrics: counts.
    """

    def __init__(self, settings: CSISettings, node: str, place: Place, *, volumes: Volumes, metrics: Metrics) -> None:
        self._settings, self._node, self._place = settings, node, place
        self._volumes, self._metrics = volumes, metrics

    def service(self) -> Service:
        """What a server serves."""
        methods: Mapping[str, Method] = {
            "NodeGetInfo": Method.unary(self._info, csi.NodeGetInfoRequest, csi.NodeGetInfoResponse),
            "NodeGetCapabilities": Method.unary(
                self._capabilities, csi.NodeGetCapabilitiesRequest, csi.NodeGetCapabilitiesResponse
            ),
            "NodePublishVolume": Method.unary(
                self._publish, csi.NodePublishVolumeRequest, csi.NodePublishVolumeResponse, max_request_bytes=256 << 10
            ),
            "NodeUnpublishVolume": Method.unary(
                self._unpublish, csi.NodeUnpublishVolumeRequest, csi.NodeUnpublishVolumeResponse
            ),
        }
        return Service("csi.v1.Node", methods)

    async def _info(self, _request: csi.NodeGetInfoRequest, _call: Call) -> csi.NodeGetInfoResponse:
        return csi.NodeGetInfoResponse(node_id=self._node)

    async def _capabilities(
        self, _request: csi.NodeGetCapabilitiesRequest, _call: Call
    ) -> csi.NodeGetCapabilitiesResponse:
        rpc = csi.NodeServiceCapability.RPC(type=csi.NodeServiceCapability.RPC.VOLUME_MOUNT_GROUP)
        return csi.NodeGetCapabilitiesResponse(capabilities=[csi.NodeServiceCapability(rpc=rpc)])

    async def _publish(self, request: csi.NodePublishVolumeRequest, call: Call) -> csi.NodePublishVolumeResponse:
        began = time.monotonic()
        outcome = "failed"
        try:
            publication = from_request(request, self._place)
            token = pod_token(request, self._settings.audience)
            within = seconds_for(self._settings.publish_timeout, call.time_remaining)
            again = await self._volumes.publish(publication, token, within=within)
            outcome = "republished" if again else "published"
        except IstioAuthError as error:
            outcome = _OUTCOMES.get(error.code, outcome)
            pod = request.volume_context.get("csi.storage.k8s.io/pod.name", "")[:253]
            log.warning("a volume is not published", volume=request.volume_id[:100], pod=pod, reason=str(error))
            raise
        finally:
            self._metrics.csi_publishes.labels(outcome).inc()
            self._metrics.csi_publish_seconds.labels(outcome).observe(time.monotonic() - began)
        return csi.NodePublishVolumeResponse()

    async def _unpublish(self, request: csi.NodeUnpublishVolumeRequest, _call: Call) -> csi.NodeUnpublishVolumeResponse:
        check_volume_id(request.volume_id)
        await self._volumes.unpublish(request.volume_id, checked_target(request.target_path, self._place))
        return csi.NodeUnpublishVolumeResponse()


class RegistrationService:
    """`pluginregistration.Registration`.

    Args:
        settings: our name and endpoint.

    Attributes:
        registered: whether the kubelet has taken us; None while it has not said.
        trouble: why it has not.
    """

    def __init__(self, settings: CSISettings) -> None:
        self._settings = settings
        self.registered: bool | None = None
        self.trouble: str | None = None

    def service(self) -> Service:
        """What a server serves."""
        return Service(
            "pluginregistration.Registration",
            {
                "GetInfo": Method.unary(self._info, kubelet.InfoRequest, kubelet.PluginInfo),
                "NotifyRegistrationStatus": Method.unary(
                    self._notified, kubelet.RegistrationStatus, kubelet.RegistrationStatusResponse
                ),
            },
        )

    async def _info(self, _request: kubelet.InfoRequest, _call: Call) -> kubelet.PluginInfo:
        return kubelet.PluginInfo(
            type="CSIPlugin",
            name=self._settings.driver,
            endpoint=str(self._settings.endpoint),
            supported_versions=["1.0.0"],
        )

    async def _notified(self, request: kubelet.RegistrationStatus, _call: Call) -> kubelet.RegistrationStatusResponse:
        self.registered = request.plugin_registered
        self.trouble = None if request.plugin_registered else request.error[:500] or "the kubelet does not say why"
        if self.registered:
            log.info("the kubelet has registered the CSI driver", driver=self._settings.driver)
        else:
            log.error("the kubelet does not register the CSI driver", reason=self.trouble)
        return kubelet.RegistrationStatusResponse()
