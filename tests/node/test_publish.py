"""Pods with the volume of the driver, started by a real kubelet: what they find there, and as whom they may read it."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from tests.cluster.client import JSON, Client
from tests.cluster.running_ca import account_id
from tests.cluster.waiting import answers, eventually
from tests.fakes.sds_client import SDSStream
from tests.fakes.waiting import until
from tests.node.installation import RUN, Installed
from tests.node.node import Node
from tests.node.pods import DRIVER, MOUNTED, PodFailed, Pods, PodSpec

SOCKET = f"{MOUNTED}/agent.sock"
NOBODY = 65534


async def test_the_kubelet_has_registered_the_driver_without_a_registrar(
    node: Node, admin: Client, installed: Installed
) -> None:
    async def look() -> list[JSON] | None:
        found: JSON = await admin.get(f"/apis/storage.k8s.io/v1/csinodes/{node.name}")
        drivers: list[JSON] | None = found["spec"]["drivers"]
        return drivers

    assert [(each["name"], each["nodeID"]) for each in await eventually(look)] == [(DRIVER, node.name)]
    await until(lambda: installed.metric("csi_registered") == 1)


async def test_a_pod_is_who_its_service_account_is_on_a_socket_of_its_own(pods: Pods, installed: Installed) -> None:
    pod = await pods.start(PodSpec(service_account="web"))
    (told,) = await pod.told("who", SOCKET)
    assert (told["spiffe_id"], told["uid"], told["roots"]) == (account_id(pods.namespace, "web"), 0, 1)
    async with SDSStream(await pod.seen(SOCKET), "default", "ROOTCA") as envoy:
        while {"default", "ROOTCA"} - envoy.secrets.keys():
            await envoy.receive()
    assert f"{envoy.svid().leaf.serial_number:x}" == told["serial"]
    assert installed.roots.encode() in envoy.secrets["ROOTCA"].validation_context.trusted_ca.inline_bytes


async def test_a_pod_that_is_not_root_reads_files_by_its_group(pods: Pods, installed: Installed) -> None:
    spec = PodSpec(attributes={"form": "files", "layout": "tls"}, service_account="web", user=1001, fs_group=2002)
    pod = await pods.start(spec)
    (told,) = await pod.told("who", MOUNTED)
    assert (told["spiffe_id"], told["uid"]) == (account_id(pods.namespace, "web"), 1001)
    folder = await pod.seen()
    key = (folder / "tls.key").stat()
    assert (stat.filemode(key.st_mode), key.st_uid, key.st_gid) == ("-rw-r-----", 0, 2002)
    assert (folder / "ca.crt").read_text() == installed.roots


async def test_a_pod_that_is_not_root_and_has_no_group_is_kept_from_the_key(pods: Pods, installed: Installed) -> None:
    pod = await pods.start(PodSpec(attributes={"form": "files"}, user=1001))
    assert "BEGIN CERTIFICATE" in await pod.run("cat", f"{MOUNTED}/cert-chain.pem")
    with pytest.raises(PodFailed, match="Permission denied"):
        await pod.run("cat", f"{MOUNTED}/key.pem")


async def test_a_pod_that_is_not_root_uses_its_socket(pods: Pods, installed: Installed) -> None:
    pod = await pods.start(PodSpec(user=NOBODY, service_account="web"))
    (told,) = await pod.told("who", SOCKET)
    assert (told["spiffe_id"], told["uid"]) == (account_id(pods.namespace, "web"), NOBODY)


async def test_a_pod_can_change_nothing_of_its_volume(pods: Pods, installed: Installed) -> None:
    pod = await pods.start(PodSpec(attributes={"form": "files"}))
    with pytest.raises(PodFailed, match="Read-only file system"):
        await pod.run("rm", f"{MOUNTED}/key.pem")


async def test_a_pod_needs_no_privilege_whatsoever(pods: Pods, installed: Installed) -> None:
    restricted = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
    await pods.admin.patch(f"/api/v1/namespaces/{pods.namespace}", restricted)
    path = f"/api/v1/namespaces/{pods.namespace}/pods?dryRun=All"  # admission hears of the label a little later
    plain = PodSpec(attributes={"form": "files"}).manifest(pods.node.name)
    assert "violates PodSecurity" in (await answers(pods.admin, 403, "POST", path, plain))["message"]
    spec = PodSpec(attributes={"form": "files"}, user=1001, fs_group=2002, sees_machine=False, is_restricted=True)
    pod = await pods.start(spec)
    assert "PRIVATE KEY" in await pod.run("/busybox", "cat", f"{MOUNTED}/key.pem")


@pytest.mark.parametrize("form", ["files", "sockets"])
async def test_a_deleted_pod_is_really_gone_and_leaves_nothing(pods: Pods, installed: Installed, form: str) -> None:
    before = set(kept())
    pod = await pods.start(PodSpec(attributes={"form": form}))
    assert len(set(kept()) - before) == 1
    assert pod.is_mounted()
    await pod.delete()
    assert set(kept()) - before == set()
    assert not pod.is_mounted()
    await until(lambda: not pod.folder.exists())


def kept() -> list[Path]:
    """What the agent keeps of volumes."""
    return list((RUN / "csi").iterdir())
