"""What a NodePublishVolume asks for, without I/O: the pod, its identity, the form of the volume, and the pod's token.

The kubelet says who the pod is, under `csi.storage.k8s.io/`; whoever writes the pod says the rest as attributes of the
volume, so each of them is checked and an unknown one is refused with its name. The identity is the pod's service
account's. Nothing here proves it: the CA does, which reviews the token and names in the certificate whom it found.

| attribute     | value                                                                            |
|---------------|----------------------------------------------------------------------------------|
| `form`        | `sockets` (default): SDS and the Workload API on a socket of this pod alone; or `files` |
| `ttl`         | the lifetime to ask for, for instance `1h`                                        |
| `socket`      | the socket's name (`agent.sock`)                                                  |
| `layout`      | the files' names: `istio` (default), `tls` or `credential-bundle`                 |
| `keyEncoding` | `PKCS8` (default), or `PKCS1` for the older forms: PKCS#1 for RSA, SEC 1 for EC    |
| `combined`    | the name of one more file that holds the key and then the chain                   |
| `keyMode`     | 0600, 0400, or with an fsGroup 0640 (then the default) or 0440                    |
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePosixPath

from istio_auth.clock import parse_duration
from istio_auth.errors import ConfigurationError, InvalidSpiffeID, MalformedError
from istio_auth.proto.csi_pb2 import NodePublishVolumeRequest
from istio_auth.sources.svid_files import SVIDLayout
from istio_auth.spiffe_id import SpiffeID, TrustDomain
from istio_auth.strict_json import JSON, parse_json
from node_agent.layout import KEY_MODES, LAYOUTS

KUBELETS_OWN = "csi.storage.k8s.io/"
TOKENS = f"{KUBELETS_OWN}serviceAccount.tokens"
EPHEMERAL = f"{KUBELETS_OWN}ephemeral"
SOCKET = "agent.sock"
LONGEST_SOCKET = 32
_POD = ("pod.namespace", "pod.name", "pod.uid", "serviceAccount.name")
_ENCODINGS = {"PKCS8": False, "PKCS1": True}
_FOR_ALL = frozenset({"form", "ttl"})
_MAX_TOKENS = 64 << 10
_MAX_ID = 256
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_GROUP = re.compile(r"0|[1-9][0-9]{0,9}")
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_SUBDOMAIN = re.compile(r"(?=.{1,253}\Z)[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?")
_UID = re.compile(r"[A-Za-z0-9-]{1,64}")
_KNOWN = frozenset({EPHEMERAL, *(KUBELETS_OWN + name for name in _POD)})
_SHAPES = {"pod.namespace": _LABEL, "pod.name": _SUBDOMAIN, "pod.uid": _UID, "serviceAccount.name": _SUBDOMAIN}


class Form(enum.Enum):
    """What a volume holds."""

    SOCKETS = "sockets"
    FILES = "files"


@dataclass(frozen=True, slots=True)
class FilesForm:
    """How files are written.

    Args:
        layout: their names.
        key_mode: the mode of each file with the key.
        group: the group that may read them; None for our own.
        traditional_key: whether the key is PKCS#1 or SEC 1 instead of PKCS#8.
        combined: one more file, with key and chain; none if empty.
    """

    layout: SVIDLayout
    key_mode: int
    group: int | None
    traditional_key: bool
    combined: str


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
        ttl: the lifetime to ask for; None for what the CA gives.
        form: what it holds.
        socket: the name of its socket.
        files: how its files are written.
    """

    volume_id: str
    target: Path
    group: str
    context: Mapping[str, str]
    pod: str
    spiffe_id: SpiffeID
    ttl: timedelta | None
    form: Form
    socket: str
    files: FilesForm

    def record(self) -> dict[str, JSON]:
        """What `from_record` reads."""
        return {
            "volume_id": self.volume_id,
            "target_path": str(self.target),
            "group": self.group,
            "context": dict(self.context),
        }


@dataclass(frozen=True, slots=True)
class Token:
    """A pod's token for our audience.

    Args:
        value: itself; never printed, never written down.
        ends: when it does.
    """

    value: str = field(repr=False)
    ends: datetime


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
        raise _refused("volume_capability is missing")
    if request.volume_capability.WhichOneof("access_type") != "mount":
        raise _refused("volume_capability: only a mount can be had, and no block device")
    if not request.readonly:
        raise _refused("the volume must be read-only: set readOnly: true at the pod's csi volume")
    if request.volume_context.get(EPHEMERAL) != "true":
        raise _refused(
            "only inline ephemeral volumes can be had: the CSIDriver needs volumeLifecycleModes: [Ephemeral]"
        )
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
        raise _refused(f"volume_mount_group {group[:40]!r} is no number of a group")
    namespace, pod, _, service_account = (_of_pod(context, name) for name in _POD)
    attributes = {name: value for name, value in context.items() if not name.startswith(KUBELETS_OWN)}
    form = Form(_one_of(attributes, "form", [each.value for each in Form], Form.SOCKETS.value))
    _check_known(attributes, form)
    try:
        spiffe_id = SpiffeID.for_service_account(place.trust_domain, namespace, service_account)
    except InvalidSpiffeID as error:
        raise _refused(str(error)) from error
    return Publication(
        volume_id,
        checked_target(target, place),
        group,
        context,
        f"{namespace}/{pod}",
        spiffe_id,
        _duration(attributes, "ttl"),
        form,
        _file_name(attributes, "socket", SOCKET, LONGEST_SOCKET),
        _files(attributes, group),
    )


def token_in(request: NodePublishVolumeRequest, audience: str) -> Token:
    """The pod's token for our audience: from the secrets, or from the context where the API server puts it there.

    Raises:
        MalformedError: there is none. Nothing of the tokens is in the message.
    """
    text = request.secrets.get(TOKENS) or request.volume_context.get(TOKENS)
    if not text:
        raise _refused(f"no token came with the pod: the CSIDriver needs tokenRequests with the audience {audience!r}")
    try:
        tokens = parse_json(text, limit=_MAX_TOKENS)
    except MalformedError as error:
        raise _refused(f"the pod's tokens are malformed: {error}") from None
    entry = tokens.get(audience) if isinstance(tokens, dict) else None
    if not isinstance(entry, dict):
        raise _refused(f"no token for the audience {audience!r} came with the pod: see tokenRequests of the CSIDriver")
    value, end = entry.get("token"), entry.get("expirationTimestamp")
    if not (isinstance(value, str) and value and value.isascii() and value.isprintable() and isinstance(end, str)):
        raise _refused("the pod's token is malformed: token or expirationTimestamp is missing")
    try:
        ends = datetime.fromisoformat(end)
    except ValueError:
        raise _refused("the pod's token is malformed: expirationTimestamp is no instant") from None
    return Token(value, ends if ends.tzinfo else ends.replace(tzinfo=UTC))


def check_volume_id(volume_id: str) -> None:
    """Make sure that a volume has a name.

    Raises:
        MalformedError: it has none.
    """
    if not volume_id:
        raise _refused("volume_id is missing")
    if len(volume_id) > _MAX_ID or not volume_id.isprintable():
        raise _refused("volume_id is no name of a volume")


def checked_target(target: str, place: Place) -> Path:
    """Where a volume is to be mounted: below the kubelet's folder and nowhere else.

    Raises:
        MalformedError: it is elsewhere.
    """
    if not target:
        raise _refused("target_path is missing")
    path = PurePosixPath(target)
    inside = path.is_relative_to(place.kubelet_folder) and path != PurePosixPath(place.kubelet_folder)
    if "\0" in target or ".." in path.parts or not inside:
        raise _refused(f"target_path {target[:200]!r} is not below {place.kubelet_folder}; see csi.kubelet_folder")
    return Path(path)


def _of_pod(context: Mapping[str, str], name: str) -> str:
    if not (value := context.get(KUBELETS_OWN + name)):
        raise _refused(f"{KUBELETS_OWN}{name} is missing: the CSIDriver needs podInfoOnMount: true")
    if not _SHAPES[name].fullmatch(value):
        raise _refused(f"{KUBELETS_OWN}{name} {value[:100]!r} is malformed")
    return value


def _check_known(attributes: Mapping[str, str], form: Form) -> None:
    allowed = _FOR_ALL | ({"socket"} if form is Form.SOCKETS else {"layout", "keyEncoding", "combined", "keyMode"})
    for name in sorted(attributes.keys() - allowed):
        raise _refused(
            f"attribute {name[:100]!r} is unknown for form {form.value!r}; known are {', '.join(sorted(allowed))}"
        )


def _files(attributes: Mapping[str, str], group: str) -> FilesForm:
    layout = LAYOUTS[_one_of(attributes, "layout", LAYOUTS, "istio")]
    mode = KEY_MODES[_one_of(attributes, "keyMode", KEY_MODES, "0640" if group else "0600")]
    if mode & 0o040 and not group:
        raise _refused(f"keyMode {attributes['keyMode']} lets a group read the key: set fsGroup in the pod")
    traditional = _ENCODINGS[_one_of(attributes, "keyEncoding", _ENCODINGS, "PKCS8")]
    combined = _file_name(attributes, "combined", "", 63)
    if combined in layout.names:
        raise _refused(f"combined {combined!r} is the name of another file of this layout")
    return FilesForm(layout, mode, int(group) if group else None, traditional, combined)


def _one_of(attributes: Mapping[str, str], name: str, known: Mapping[str, object] | list[str], default: str) -> str:
    if (value := attributes.get(name, default)) not in known:
        raise _refused(f"attribute {name} {value[:100]!r} is none of {', '.join(known)}")
    return value


def _duration(attributes: Mapping[str, str], name: str) -> timedelta | None:
    try:
        return parse_duration(attributes[name]) if name in attributes else None
    except ConfigurationError as error:
        raise _refused(f"attribute {name}: {error}") from error


def _file_name(attributes: Mapping[str, str], name: str, default: str, longest: int) -> str:
    value = attributes.get(name, default)
    if value != default and (not _NAME.fullmatch(value) or len(value) > longest):
        raise _refused(f"attribute {name} {value[:100]!r} is no file name of at most {longest} letters, digits, . _ -")
    return value


def _refused(message: str) -> MalformedError:
    return MalformedError(message, public=message)
