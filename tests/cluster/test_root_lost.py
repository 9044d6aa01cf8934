"""The root, or a plugged-in CA, is gone or was never there: nobody is cut off, and it says what is the matter."""

from __future__ import annotations

from pathlib import Path

from istio_auth.pem import write_certificates, write_private_key
from tests.cluster.client import Client
from tests.cluster.control_plane import ControlPlane
from tests.cluster.running_ca import RunningCA
from tests.cluster.sound import root_of, until_sound
from tests.cluster.waiting import eventually
from tests.fakes.authority import FakeAuthority
from tests.fakes.processes import program


async def test_a_root_that_is_deleted_under_a_running_ca_is_there_again_and_no_other_is_made(
    control_plane: ControlPlane, admin: Client, namespace: str, tmp_path: Path
) -> None:
    path = f"/api/v1/namespaces/{namespace}/secrets/istio-ca-secret"
    first, second = (
        RunningCA(control_plane.kubeconfig, tmp_path / name, namespace, managed=[namespace])
        for name in ("first", "second")
    )
    async with first:
        before = await until_sound(admin, namespace, namespace)
        root = await root_of(admin, namespace)
        found = await admin.get(path)
        await admin.delete(path)
        again = await eventually(lambda: admin.find(path))
        assert (again["type"], again["data"]) == (found["type"], found["data"])
        await first.process.says_like("the state of the authority was deleted")
        async with second:
            assert await root_of(admin, namespace) == root
            assert await until_sound(admin, namespace, namespace) == before


async def test_a_plugged_in_ca_that_is_deleted_goes_on_signing_and_the_log_says_what_is_to_be_feared(
    control_plane: ControlPlane, admin: Client, namespace: str, tmp_path: Path
) -> None:
    path = f"/api/v1/namespaces/{namespace}/secrets/cacerts"
    plugged = FakeAuthority()
    root = write_certificates((plugged.root,)).decode()
    key = write_private_key(plugged.key).decode()
    files = {"ca-cert.pem": root, "ca-key.pem": key, "cert-chain.pem": root, "root-cert.pem": root}
    secret = {"metadata": {"name": "cacerts", "namespace": namespace}, "stringData": files}
    await admin.create(path.removesuffix("/cacerts"), secret)
    ca = RunningCA(control_plane.kubeconfig, tmp_path / "ca", namespace, managed=[namespace])
    async with ca:
        await until_sound(admin, namespace, namespace)
        await admin.delete(path)
        await ca.process.says_like("its files are gone")
        await admin.create_service_account(namespace, "later")
        await eventually(lambda: admin.find(f"/api/v1/namespaces/{namespace}/secrets/istio.later"))
    await ca.process.start()
    line = await ca.process.says("can not start")
    assert "cacerts" in str(line["reason"])
    assert await ca.process.ended() == 1
    await admin.create(path.removesuffix("/cacerts"), secret)
    async with ca:
        await until_sound(admin, namespace, namespace)


async def test_a_folder_for_a_plugged_in_ca_that_is_not_there_is_no_reason_to_make_a_root(
    control_plane: ControlPlane, admin: Client, namespace: str, tmp_path: Path
) -> None:
    folder = tmp_path / "cacerts"
    words = (program("istio-ca"), "--ca-folder", folder)
    ca = RunningCA(control_plane.kubeconfig, tmp_path / "ca", namespace, managed=[namespace], program=words)
    await ca.process.start()
    line = await ca.process.says("can not start")
    assert str(folder) in str(line["reason"])
    assert await ca.process.ended() == 2
    assert await admin.find(f"/api/v1/namespaces/{namespace}/secrets/istio-ca-secret") is None
    folder.mkdir()
    async with ca:
        await until_sound(admin, namespace, namespace)
