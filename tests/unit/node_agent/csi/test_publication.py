"""What may be asked of a volume: what may not is refused by its name, and passes once it is mended."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from istio_auth.errors import MalformedError
from istio_auth.proto.csi_pb2 import NodePublishVolumeRequest, VolumeCapability
from istio_auth.sources.svid_files import SVIDLayout
from istio_auth.spiffe_id import SpiffeID, TrustDomain
from node_agent.csi.attributes import Form
from node_agent.csi.pod_token import TOKENS, Token, pod_token
from node_agent.csi.publication import Place, checked_target, from_record, from_request

PLACE = Place(TrustDomain("cluster.local"), Path("/var/lib/kubelet"))
OWN = "csi.storage.k8s.io/"
SECRET = "the-secret-token-of-a-pod"


def request(group: str = "", **attributes: str) -> NodePublishVolumeRequest:
    """A request that is well, with these attributes of the volume."""
    return NodePublishVolumeRequest(
        volume_id="csi-1",
        target_path="/var/lib/kubelet/pods/1/volumes/kubernetes.io~csi/id/mount",
        readonly=True,
        volume_capability=VolumeCapability(mount=VolumeCapability.MountVolume(volume_mount_group=group)),
        volume_context={
            f"{OWN}pod.name": "web-0",
            f"{OWN}pod.namespace": "shop",
            f"{OWN}pod.uid": "5f7a",
            f"{OWN}serviceAccount.name": "web.v1",
            f"{OWN}ephemeral": "true",
            **attributes,
        },
    )


def given(text: str) -> NodePublishVolumeRequest:
    """A request with these tokens."""
    asked = request()
    asked.secrets[TOKENS] = text
    return asked


def test_a_volume_is_the_socket_of_the_pods_service_account_if_nothing_else_is_said() -> None:
    found = from_request(request(), PLACE)
    assert found.spiffe_id == SpiffeID.parse("spiffe://cluster.local/ns/shop/sa/web.v1")
    asked = found.attributes
    assert (asked.form, asked.socket, asked.ttl, found.pod) == (Form.SOCKETS, "agent.sock", None, "shop/web-0")


def test_files_are_as_the_pods_author_says() -> None:
    found = from_request(
        request("2000", form="files", layout="tls", keyEncoding="PKCS1", combined="all.pem", ttl="2h"), PLACE
    ).attributes
    assert (found.form, found.ttl) == (Form.FILES, timedelta(hours=2))
    files = found.files
    assert (files.layout, files.key_mode, files.group) == (SVIDLayout.KUBERNETES_TLS, 0o640, 2000)
    assert (files.traditional_key, files.combined) == (True, "all.pem")


def test_without_a_group_nobody_but_the_owner_reads_the_key() -> None:
    assert from_request(request(form="files"), PLACE).attributes.files.key_mode == 0o600


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"form": "secrets"}, "attribute form 'secrets' is none of sockets, files"),
        ({"colour": "red"}, "attribute 'colour' is unknown for form 'sockets'"),
        ({"layout": "tls"}, "attribute 'layout' is unknown for form 'sockets'"),
        ({"form": "files", "socket": "a"}, "attribute 'socket' is unknown for form 'files'"),
        ({"form": "files", "layout": "java"}, "attribute layout 'java' is none of istio, tls, credential-bundle"),
        ({"form": "files", "keyEncoding": "PKCS12"}, "attribute keyEncoding 'PKCS12' is none of PKCS8, PKCS1"),
        ({"form": "files", "keyMode": "0644"}, "attribute keyMode '0644' is none of"),
        ({"form": "files", "keyMode": "0640"}, "set fsGroup in the pod"),
        ({"form": "files", "combined": "../x"}, "attribute combined '../x' is no file name"),
        ({"form": "files", "combined": "..data"}, "attribute combined '..data' is no file name"),
        ({"form": "files", "combined": "key.pem"}, "combined 'key.pem' is the name of another file"),
        ({"socket": "a/b"}, "attribute socket 'a/b' is no file name"),
        ({"socket": "s" * 33}, "is no file name of at most 32"),
        ({"ttl": "soon"}, "'soon' is no duration"),
        ({f"{OWN}ephemeral": "false"}, r"volumeLifecycleModes: \[Ephemeral\]"),
        ({f"{OWN}pod.namespace": ""}, f"{OWN}pod.namespace is missing: the CSIDriver needs podInfoOnMount: true"),
        ({f"{OWN}pod.namespace": "Shop/../x"}, "pod.namespace 'Shop/../x' is malformed"),
        ({f"{OWN}pod.name": "a b"}, "pod.name 'a b' is malformed"),
        ({f"{OWN}pod.uid": "../1"}, r"pod.uid '../1' is malformed"),
        ({f"{OWN}serviceAccount.name": "a/b"}, "serviceAccount.name 'a/b' is malformed"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_what_can_not_be_is_refused_by_its_name_and_told_to_the_kubelet(
    attributes: dict[str, str], reason: str
) -> None:
    with pytest.raises(MalformedError, match=reason) as refusal:
        from_request(request(**attributes), PLACE)
    assert refusal.value.public == str(refusal.value)


def _writable(asked: NodePublishVolumeRequest) -> None:
    asked.readonly = False


def _block(asked: NodePublishVolumeRequest) -> None:
    asked.volume_capability.CopyFrom(VolumeCapability(block=VolumeCapability.BlockVolume()))


def _group(asked: NodePublishVolumeRequest) -> None:
    asked.volume_capability.mount.volume_mount_group = "wheel"


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (_writable, "set readOnly: true"),
        (_block, "only a mount can be had"),
        (_group, "'wheel' is no number of a group"),
        (lambda asked: asked.ClearField("volume_capability"), "volume_capability is missing"),
        (lambda asked: asked.ClearField("volume_id"), "volume_id is missing"),
        (lambda asked: asked.ClearField("target_path"), "target_path is missing"),
    ],
)
def test_what_csi_demands_is_demanded(spoil: Callable[[NodePublishVolumeRequest], None], reason: str) -> None:
    asked = request()
    spoil(asked)
    with pytest.raises(MalformedError, match=reason):
        from_request(asked, PLACE)


@pytest.mark.parametrize(
    "path", ["/etc", "/var/lib/kubelet", "/var/lib/kubelet/../../etc", "pods/x", "/var/lib/kubeletx/y"]
)
def test_nothing_is_mounted_outside_of_the_kubelets_folder(path: str) -> None:
    with pytest.raises(MalformedError, match=r"is not below /var/lib/kubelet"):
        checked_target(path, PLACE)
    assert checked_target("/var/lib/kubelet/pods/x", PLACE) == Path("/var/lib/kubelet/pods/x")


def test_a_record_gives_the_same_volume_again_and_holds_no_token() -> None:
    asked = request("2000", form="files")
    asked.volume_context[TOKENS] = json.dumps({"istio-ca": {"token": SECRET}})
    asked.volume_context[f"{OWN}of.tomorrow"] = "x"
    found = from_request(asked, PLACE)
    text = json.dumps(found.record())
    assert SECRET not in text
    assert "of.tomorrow" not in text
    assert from_record(json.loads(text), PLACE) == found


@pytest.mark.parametrize("record", [None, [], {}, {"context": {}}, {"volume_id": 1, "context": {}}])
def test_what_is_no_record_gives_no_volume(record: None) -> None:
    with pytest.raises(MalformedError, match="no record of a volume"):
        from_record(record, PLACE)


@pytest.mark.parametrize("where", ["secrets", "volume_context"])
def test_the_token_for_our_audience_is_found_in_either_place(where: str) -> None:
    asked = request()
    entry = {"token": SECRET, "expirationTimestamp": "2030-01-01T12:00:00Z"}
    getattr(asked, where)[TOKENS] = json.dumps({"": {"token": "another"}, "istio-ca": entry})
    assert pod_token(asked, "istio-ca") == Token(SECRET, datetime(2030, 1, 1, 12, tzinfo=UTC))
    assert SECRET not in repr(pod_token(asked, "istio-ca"))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "tokenRequests with the audience 'istio-ca'"),
        (SECRET, "the pod's tokens are malformed"),
        (json.dumps([SECRET]), "no token for the audience 'istio-ca'"),
        (json.dumps({"vault": {"token": SECRET}}), "no token for the audience 'istio-ca'"),
        (json.dumps({"istio-ca": {"token": SECRET}}), "expirationTimestamp is missing"),
        (
            json.dumps({"istio-ca": {"token": SECRET, "expirationTimestamp": SECRET}}),
            "expirationTimestamp is no instant",
        ),
        (
            json.dumps({"istio-ca": {"token": f"{SECRET}\n", "expirationTimestamp": "2030-01-01T12:00:00Z"}}),
            "malformed",
        ),
    ],
)
def test_a_token_that_is_none_is_refused_and_not_repeated(text: str, reason: str) -> None:
    with pytest.raises(MalformedError, match=reason) as refusal:
        pod_token(given(text), "istio-ca")
    assert SECRET not in f"{refusal.value!r} {refusal.value.public} {refusal.value.__cause__!r}"
