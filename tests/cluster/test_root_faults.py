"""The root of a real CA: never made anew because it could not be read, and taken over from `cacerts` without a gap."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path

import pytest
from cryptography import x509

from istio_auth.pem import write_certificates, write_private_key
from tests.cluster.client import Client
from tests.cluster.control_plane import ControlPlane
from tests.cluster.running_ca import Caller, RunningCA, published_roots
from tests.cluster.sound import root_of, secrets, until_sound
from tests.cluster.waiting import answers, eventually
from tests.fakes.api_server_proxy import Answer, APIServerProxy, Call
from tests.fakes.authority import FakeAuthority
from tests.integration.daemons.foreign import certificates

RIGHTS = "/apis/rbac.authorization.k8s.io/v1"
ALL_BUT_SECRETS = [
    {
        "apiGroups": ["", "coordination.k8s.io", "certificates.k8s.io", "events.k8s.io", "authentication.k8s.io"],
        "resources": [
            *("pods", "serviceaccounts", "namespaces", "configmaps", "events", "leases", "tokenreviews"),
            *("clustertrustbundles", "signers"),
        ],
        "verbs": ["*"],
    },
    {"apiGroups": [""], "resources": ["secrets"], "verbs": ["create", "list", "watch", "update", "patch", "delete"]},
]


def is_read_of_the_root(call: Call) -> bool:
    return (call.method, call.resource, call.name) == ("GET", "secrets", "istio-ca-secret")


async def refuses_to_start(ca: RunningCA) -> tuple[int, str]:
    """The exit code and the reason of a CA that does not start."""
    already = ca.mark()
    await ca.process.start()
    line = await ca.process.says("can not start", after=already)
    return await ca.process.ended(), str(line["reason"])


async def test_a_root_that_it_may_not_read_stops_the_start_and_is_not_made(
    control_plane: ControlPlane, admin: Client, namespace: str, tmp_path: Path
) -> None:
    await admin.create_service_account(namespace, "istio-ca")
    await admin.create(f"{RIGHTS}/clusterroles", {"metadata": {"name": namespace}, "rules": ALL_BUT_SECRETS})
    subject = {"kind": "ServiceAccount", "name": "istio-ca", "namespace": namespace}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": namespace}
    binding = {"metadata": {"name": namespace}, "subjects": [subject], "roleRef": role}
    await admin.create(f"{RIGHTS}/clusterrolebindings", binding)
    token = await admin.service_account_token(namespace, "istio-ca")
    kubeconfig = control_plane.kubeconfig_for(token, tmp_path / "kubeconfig")
    async with control_plane.client(token) as account:
        await answers(account, 200, "GET", f"/api/v1/namespaces/{namespace}/secrets")
        ca = RunningCA(kubeconfig, tmp_path / "ca", namespace, managed=[namespace])
        code, reason = await refuses_to_start(ca)
        assert code == 1
        assert "get secrets" in reason
        assert "istio-ca-secret" in reason
        assert await admin.list(f"/api/v1/namespaces/{namespace}/secrets") == []
        mended = [*ALL_BUT_SECRETS, {"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}]
        await admin.patch(f"{RIGHTS}/clusterroles/{namespace}", {"rules": mended})
        await answers(account, 404, "GET", f"/api/v1/namespaces/{namespace}/secrets/istio-ca-secret")
        async with ca:
            await until_sound(admin, namespace, namespace)
    await admin.delete(f"{RIGHTS}/clusterrolebindings/{namespace}")
    await admin.delete(f"{RIGHTS}/clusterroles/{namespace}")


@pytest.mark.parametrize("status", [403, 500])
async def test_a_root_that_can_not_be_read_stops_the_start_and_is_not_made(
    control_plane: ControlPlane, admin: Client, namespace: str, tmp_path: Path, status: int
) -> None:
    async with APIServerProxy(control_plane.url, control_plane.admin_tls) as proxy:
        kubeconfig = proxy.kubeconfig(tmp_path / "kubeconfig")
        ca = RunningCA(kubeconfig, tmp_path / "ca", namespace, managed=[namespace])
        fault = proxy.answer(is_read_of_the_root, Answer(status, "not now"), times=1000)
        code, reason = await refuses_to_start(ca)
        assert code == 1
        assert "istio-ca-secret: not now" in reason
        assert await admin.list(f"/api/v1/namespaces/{namespace}/secrets") == []
        assert [call for call in proxy.calls if call.writes and call.resource == "secrets"] == []
        fault.left = 0
        async with ca:
            await until_sound(admin, namespace, namespace)


async def test_a_damaged_root_stops_the_start_and_stays_as_it_is(
    control_plane: ControlPlane, admin: Client, namespace: str, tmp_path: Path
) -> None:
    path = f"/api/v1/namespaces/{namespace}/secrets/istio-ca-secret"
    ca = RunningCA(control_plane.kubeconfig, tmp_path / "ca", namespace, managed=[namespace])
    async with ca:
        await until_sound(admin, namespace, namespace)
    good = await admin.get(path)
    damaged = await admin.patch(path, {"data": {"ca-key.pem": base64.b64encode(b"damaged").decode()}})
    code, reason = await refuses_to_start(ca)
    assert code == 2
    assert "ca-key.pem" in reason
    assert await admin.get(path) == damaged
    await admin.patch(path, {"data": {"ca-key.pem": good["data"]["ca-key.pem"]}})
    root = await root_of(admin, namespace)
    async with ca:
        await until_sound(admin, namespace, namespace)
        assert await root_of(admin, namespace) == root


def plugged_in(authority: FakeAuthority) -> Mapping[str, str]:
    """The content of `cacerts`."""
    root = write_certificates((authority.root,))
    files = {
        "ca-cert.pem": root,
        "ca-key.pem": write_private_key(authority.key),
        "cert-chain.pem": root,
        "root-cert.pem": root,
    }
    return {name: content.decode() for name, content in files.items()}


async def test_a_ca_that_is_plugged_in_later_signs_when_its_root_is_everywhere_and_nobody_is_turned_away(
    control_plane: ControlPlane, admin: Client, namespace: str, tmp_path: Path
) -> None:
    settings = {"settle": "8s"}  # in which a busy machine looks at least once
    async with RunningCA(
        control_plane.kubeconfig, tmp_path / "ca", namespace, managed=[namespace], settings=settings
    ) as ca:
        await admin.create_service_account(namespace, "web")
        before = await until_sound(admin, namespace, namespace)
        old, new = await root_of(admin, namespace), FakeAuthority()
        token = await admin.service_account_token(namespace, "web", audiences=["istio-ca"])
        body = {"metadata": {"name": "cacerts"}, "stringData": plugged_in(new)}
        await admin.create(f"/api/v1/namespaces/{namespace}/secrets", body)
        seen: list[tuple[list[x509.Certificate], str]] = []

        async def signs() -> bool:
            """Whether the new one signs; each look is a caller that trusts what is published, and must be served."""
            roots = await published_roots(admin, namespace)
            _, identity = await Caller(ca, roots).identity(token)
            issuer = certificates(identity.chain.decode())[0].issuer
            seen.append((certificates(roots), "new" if issuer == new.root.subject else "old"))
            return seen[-1][1] == "new"

        assert await eventually(signs, within=120)
        assert {issuer for roots, issuer in seen if set(roots) == {old}} <= {"old"}
        assert {issuer for roots, issuer in seen if set(roots) == {old, new.root}} == {"old", "new"}
        assert all(old in roots for roots, _ in seen)

        async def everywhere() -> bool:
            found = await secrets(admin, namespace)
            pems = [base64.b64decode(each["data"]["root-cert.pem"]).decode() for each in found.values()]
            return all({old, new.root} == set(certificates(pem)) for pem in pems)

        assert await eventually(everywhere)
        assert ca.told("stopping") == []
        assert (await secrets(admin, namespace)).keys() == before.keys()
        await admin.create_service_account(namespace, "later")
        later = (await eventually(lambda: found_later(admin, namespace)))["data"]["cert-chain.pem"]
        certificates(base64.b64decode(later).decode())[0].verify_directly_issued_by(new.root)


async def found_later(admin: Client, namespace: str) -> dict[str, dict[str, str]] | None:
    return await admin.find(f"/api/v1/namespaces/{namespace}/secrets/istio.later")
