"""What a NodePublishVolume asks for: the pod, its identity, the place and form of the volume. Pure.

The kubelet says who the pod is, under `csi.storage.k8s.io/`; whoever writes the pod says the rest (`attributes`). The
identity is that of the pod's service account. Nothing here proves it. The CA does: it reviews the token and puts into
the certificate whom it found.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from istio_auth.errors import InvalidSpiffeID, MalformedError
from istio_auth.proto.csi_pb2 import NodePublishVolumeRequest
from istio_auth.spiffe_id import SpiffeID, TrustDomain
from istio_auth.strict_json import JSON
from node_agent.csi.attributes import Attributes, refused

KUBELETS_OWN = "csi.storage.k8s.io/"
EPHEMERAL = f"{KUBELETS_OWN}ephemeral"
_POD = ("pod.namespace", "pod.name", "pod.uid", "serviceAccount.name")
_MAX_ID = 256
_GROUP = re.compile(r"0|[1-9][0-9]{0,9}")
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_SUBDOMAIN = re.compile(r"(?=.{1,253}\Z)[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?")
_UID = re.compile(r"[A-Za-z0-9-]{1,64}")
_KNOWN = frozenset({EPHEMERAL, *(KUBELETS_OWN + name for name in _POD)})
_SHAPES = {"pod.namespace": _LABEL, "pod.name": _SUBDOMAIN, "pod.uid": _UID, "serviceAccount.name": _SUBDOMAIN}


@dataclass(frozen=True, slots=True)
class Publication:
    """A volume as it was asked for; all that is written down of it.

    Args:
        volume_id: the kubelet's name for it.
        target: where the kubelet wants it.
        group: the pod's fsGroup, as the kubelet wrote it; empty if it has none.
        context: what the kubelet and the pod's author say of it, without tokens.
        pod: namespace and name, for people.
        spiffe_id: the identity of the pod's service account.
        attributes: what the pod's author asks for.
    """

    volume_id: str
    target: Path
    group: str
    context: Mapping[str, str]
    pod: str
    spiffe_id: SpiffeID
    attributes: Attributes

    def record(self) -> dict[str, JSON]:
        """What `from_record` reads."""
        return {
            "volume_id": self.volume_id,
            "target_path": str(self.target),
            "group": self.group,
            "context": dict(self.context),
        }


@dataclass(frozen=True, slots=True)
class Place:
    """Where we are.

    Args:
        trust_domain: our own.
        kubelet_folder: below it, volumes are mounted.
    """

    trust_domain: TrustDomain
    kubelet_folder: Path


def from_request(request: NodePublishVolumeRequest, place: Place) -> Publication:
    """What a request asks for.

    Raises:
        MalformedError: it may not be had; the kubelet shows the reason at the pod.
    """
    if not request.HasField("volume_capability"):
        raise refused("volume_capability is missing")
    if request.volume_capability.WhichOneof("access_type") != "mount":
        raise refused("volume_capability: only a mount can be had, and no block device")
    if not request.readonly:
        raise refused("the volume must be read-only: set readOnly: true at the pod's csi volume")
    if request.volume_context.get(EPHEMERAL) != "true":
        raise refused("only inline ephemeral volumes can be had: the CSIDriver needs volumeLifecycleModes: [Ephemeral]")
    return publication(
        request.volume_id,
        request.target_path,
        group=request.volume_capability.mount.volume_mount_group,
        context=request.volume_context,
        place=place,
    )


def from_record(record: JSON, place: Place) -> Publication:
    """What was written down of a volume.

    Raises:
        MalformedError: it is no such thing.
    """
    names = ("volume_id", "target_path", "group")
    if not isinstance(record, dict) or not isinstance(context := record.get("context"), dict):
        raise MalformedError("no record of a volume")
    volume_id, target, group = (record.get(name) for name in names)
    if not (isinstance(volume_id, str) and isinstance(target, str) and isinstance(group, str)):
        raise MalformedError(f"no record of a volume: {', '.join(names)} are strings")
    texts = {name: str(value) for name, value in context.items()}
    return publication(volume_id, target, group=group, context=texts, place=place)


def publication(volume_id: str, target: str, *, group: str, context: Mapping[str, str], place: Place) -> Publication:
    """The volume that these make together.

    Raises:
        MalformedError: they make none.
    """
    check_volume_id(volume_id)
    # Of the kubelet's own words only those that we go by: it may have others tomorrow, and tokens are among them.
    context = {name: value for name, value in context.items() if name in _KNOWN or not name.startswith(KUBELETS_OWN)}
    if group and not _GROUP.fullmatch(group):
        raise refused(f"volume_mount_group {group[:40]!r} is no number of a group")
    namespace, pod, _, service_account = (_of_pod(context, name) for name in _POD)
    asked = {name: value for name, value in context.items() if not name.startswith(KUBELETS_OWN)}
    attributes = Attributes.of(asked, group)
    try:
        spiffe_id = SpiffeID.for_service_account(place.trust_domain, namespace, service_account)
    except InvalidSpiffeID as error:
        raise refused(str(error)) from error
    return Publication(
        volume_id,
        checked_target(target, place),
        group,
        context,
        f"{namespace}/{pod}",
        spiffe_id,
        attributes,
    )


def check_volume_id(volume_id: str) -> None:
    """Make sure that a volume has a name.

    Raises:
        MalformedError: it has none.
    """
    if not volume_id:
        raise refused("volume_id is missing")
    if len(volume_id) > _MAX_ID or not volume_id.isprintable():
        raise refused("volume_id is no name of a volume")


def checked_target(target: str, place: Place) -> Path:
    """Where a volume is to be mounted: below the kubelet's folder and nowhere else.

    Raises:
        MalformedError: it is elsewhere.
    """
    if not target:
        raise refused("target_path is missing")
    path = PurePosixPath(target)
    inside = path.is_relative_to(place.kubelet_folder) and path != PurePosixPath(place.kubelet_folder)
    if "\0" in target or ".." in path.parts or not inside:
        raise refused(f"target_path {target[:200]!r} is not below {place.kubelet_folder}; see csi.kubelet_folder")
    return Path(path)


def _of_pod(context: Mapping[str, str], name: str) -> str:
    if not (value := context.get(KUBELETS_OWN + name)):
        raise refused(f"{KUBELETS_OWN}{name} is missing: the CSIDriver needs podInfoOnMount: true")
    if not _SHAPES[name].fullmatch(value):
        raise refused(f"{KUBELETS_OWN}{name} {value[:100]!r} is malformed")
    return value
