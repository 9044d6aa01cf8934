"""The control plane of the tests is a real one: accounts, tokens, pods, faults, and the newest certificate APIs."""

from __future__ import annotations

import asyncio
import base64
import subprocess
from pathlib import Path

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.cluster.client import JSON, Client, Refused
from tests.cluster.control_plane import ControlPlane
from tests.cluster.flags import ISSUER
from tests.cluster.waiting import answers, appears, vanishes

AUDIENCE = "istio-ca"
SIGNER = "istio-auth.test/pod"
CERTIFICATES = "/apis/certificates.k8s.io/v1"


async def review(admin: Client, token: str, *audiences: str) -> JSON:
    """What the API server says of a token."""
    body = {"spec": {"token": token, "audiences": list(audiences)}}
    status: JSON = (await admin.create("/apis/authentication.k8s.io/v1/tokenreviews", body))["status"]
    return status


async def test_says_which_kubernetes_it_is(control_plane: ControlPlane, admin: Client) -> None:
    version = await admin.get("/version")
    assert f"v{version['major']}.{version['minor']}" in version["gitVersion"]


async def test_a_new_namespace_gets_its_default_service_account_and_the_root_of_the_api_server(
    control_plane: ControlPlane, controllers: None, admin: Client, namespace: str
) -> None:
    await appears(admin, f"/api/v1/namespaces/{namespace}/serviceaccounts/default")
    roots = await appears(admin, f"/api/v1/namespaces/{namespace}/configmaps/kube-root-ca.crt")
    assert roots["data"]["ca.crt"] == control_plane.ca_file.read_text()


async def test_a_deleted_namespace_goes_away_with_all_in_it(controllers: None, admin: Client) -> None:
    await admin.create_namespace("short-lived")
    await appears(admin, "/api/v1/namespaces/short-lived/serviceaccounts/default")
    await admin.create_pod("short-lived", "web")
    await admin.delete("/api/v1/namespaces/short-lived")
    await vanishes(admin, "/api/v1/namespaces/short-lived")


async def test_what_a_deleted_object_owned_is_collected(controllers: None, admin: Client, namespace: str) -> None:
    account = await admin.create_service_account(namespace, "web")
    owner = {"apiVersion": "v1", "kind": "ServiceAccount", "name": "web", "uid": account["metadata"]["uid"]}
    secrets = f"/api/v1/namespaces/{namespace}/secrets"
    await admin.create(secrets, {"metadata": {"name": "owned", "ownerReferences": [owner]}})
    await admin.delete(f"/api/v1/namespaces/{namespace}/serviceaccounts/web")
    await vanishes(admin, f"{secrets}/owned")


async def test_a_token_is_good_for_its_audience_alone(admin: Client, namespace: str) -> None:
    await admin.create_service_account(namespace, "web")
    token = await admin.service_account_token(namespace, "web", audiences=[AUDIENCE])
    seen = await review(admin, token, AUDIENCE)
    assert seen["authenticated"]
    assert seen["audiences"] == [AUDIENCE]
    assert seen["user"]["username"] == f"system:serviceaccount:{namespace}:web"
    assert not (await review(admin, token, ISSUER)).get("authenticated")
    assert not (await review(admin, token)).get("authenticated")


async def test_a_token_of_a_pod_tells_the_pod_and_its_node(admin: Client, namespace: str) -> None:
    await admin.create_service_account(namespace, "web")
    node = await admin.create_node(f"node-{namespace}")
    pod = await admin.create_pod(namespace, "web-1", service_account="web", node=node["metadata"]["name"])
    token = await admin.service_account_token(namespace, "web", audiences=[AUDIENCE], pod=pod)
    extra = (await review(admin, token, AUDIENCE))["user"]["extra"]
    assert extra["authentication.kubernetes.io/pod-name"] == ["web-1"]
    assert extra["authentication.kubernetes.io/pod-uid"] == [pod["metadata"]["uid"]]
    assert extra["authentication.kubernetes.io/node-name"] == [node["metadata"]["name"]]
    assert extra["authentication.kubernetes.io/node-uid"] == [node["metadata"]["uid"]]


async def test_the_keys_of_tokens_are_published(admin: Client) -> None:
    keys = (await admin.get("/openid/v1/jwks"))["keys"]
    assert [key["alg"] for key in keys] == ["RS256"]
    assert (await admin.get("/.well-known/openid-configuration"))["issuer"] == ISSUER


async def test_a_token_opens_what_its_account_may_do_and_nothing_else(
    control_plane: ControlPlane, admin: Client, namespace: str
) -> None:
    await admin.create_service_account(namespace, "reader")
    token = await admin.service_account_token(namespace, "reader")
    secrets = f"/api/v1/namespaces/{namespace}/secrets"
    roles = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}"
    async with control_plane.client(token) as reader:
        with pytest.raises(Refused, match="cannot list resource") as refused:
            await reader.list(secrets)
        assert refused.value.status == 403
        rule = {"apiGroups": [""], "resources": ["secrets"], "verbs": ["list"]}
        await admin.create(f"{roles}/roles", {"metadata": {"name": "reader"}, "rules": [rule]})
        subject = {"kind": "ServiceAccount", "name": "reader", "namespace": namespace}
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"}
        binding = {"metadata": {"name": "reader"}, "subjects": [subject], "roleRef": role}
        await admin.create(f"{roles}/rolebindings", binding)
        await answers(reader, 200, "GET", secrets)


async def test_kubectl_works_with_either_kubeconfig(
    control_plane: ControlPlane, admin: Client, namespace: str, tmp_path: Path
) -> None:
    kubectl = control_plane.binaries / "kubectl"
    if not kubectl.exists():
        pytest.skip("there is no kubectl beside the servers")
    await admin.create_service_account(namespace, "web")
    token = await admin.service_account_token(namespace, "web")
    limited = control_plane.kubeconfig_for(token, tmp_path / "kubeconfig")
    for path, name in ((control_plane.kubeconfig, "kubernetes-admin"), (limited, f"{namespace}:web")):
        assert path.stat().st_mode & 0o077 == 0
        command = (kubectl, "--kubeconfig", path, "auth", "whoami")
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=True)
        assert name in done.stdout


async def test_a_kubelet_asks_for_the_certificates_of_its_own_pods_and_no_other_does(
    control_plane: ControlPlane, admin: Client, namespace: str
) -> None:
    account = await admin.create_service_account(namespace, "web")
    node, other = [await admin.create_node(f"{name}-{namespace}") for name in ("own", "other")]
    source = {"signerName": SIGNER, "keyType": "ECDSAP256", "credentialBundlePath": "bundle.pem"}
    volume = {"name": "certificate", "projected": {"sources": [{"podCertificate": source}]}}
    pod = await admin.create_pod(
        namespace, "web-1", service_account="web", node=node["metadata"]["name"], volumes=[volume]
    )
    key = ec.generate_private_key(ec.SECP256R1())
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    spec = {
        "signerName": SIGNER,
        "podName": "web-1",
        "podUID": pod["metadata"]["uid"],
        "serviceAccountName": "web",
        "serviceAccountUID": account["metadata"]["uid"],
        "nodeName": node["metadata"]["name"],
        "nodeUID": node["metadata"]["uid"],
        "stubPKCS10Request": base64.b64encode(csr.public_bytes(serialization.Encoding.DER)).decode(),
    }
    path = f"{CERTIFICATES}/namespaces/{namespace}/podcertificaterequests"
    request = {"metadata": {"generateName": "req-"}, "spec": spec}
    async with (
        control_plane.kubelet(other["metadata"]["name"]) as stranger,
        control_plane.kubelet(node["metadata"]["name"]) as kubelet,
    ):
        with pytest.raises(Refused, match="not the requesting node") as refused:
            await stranger.create(path, request)
        assert refused.value.status == 403
        await answers(kubelet, 201, "POST", path, request)
    assert [found["spec"]["podName"] for found in await admin.list(path)] == ["web-1"]


@pytest.mark.parametrize("resource", ["certificatesigningrequests", "clustertrustbundles", "podcertificaterequests"])
async def test_the_certificate_apis_are_served(admin: Client, resource: str) -> None:
    served = {entry["name"] for entry in (await admin.get(CERTIFICATES))["resources"]}
    assert resource in served
    assert await admin.list(f"{CERTIFICATES}/{resource}") is not None


async def test_no_kubelet_speaks_for_the_pods_of_another_node(
    control_plane: ControlPlane, admin: Client, namespace: str
) -> None:
    await admin.create_service_account(namespace, "web")
    nodes = [f"{name}-{namespace}" for name in ("own", "other")]
    for node in nodes:
        await admin.create_node(node)
    volume = {"name": "token", "projected": {"sources": [{"serviceAccountToken": {"audience": AUDIENCE, "path": "t"}}]}}
    pod = await admin.create_pod(namespace, "web-1", service_account="web", node=nodes[0], volumes=[volume])
    identity = {key: pod["metadata"][key] for key in ("name", "uid")}
    spec = {"audiences": [AUDIENCE], "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", **identity}}
    path = f"/api/v1/namespaces/{namespace}/serviceaccounts/web/token"
    async with control_plane.kubelet(nodes[1]) as stranger, control_plane.kubelet(nodes[0]) as kubelet:
        with pytest.raises(Refused) as refused:
            await stranger.create(path, {"spec": spec})
        assert refused.value.status == 403
        await answers(kubelet, 201, "POST", path, {"spec": spec})


async def test_an_api_server_that_comes_back_has_its_data(own_control_plane: ControlPlane) -> None:
    async with own_control_plane.admin() as admin:
        await admin.create_namespace("kept")
        await own_control_plane.stop_api_server()
        with pytest.raises(aiohttp.ClientConnectionError):
            await admin.get("/readyz")
        await own_control_plane.start_api_server()
        await admin.get("/api/v1/namespaces/kept")
        await admin.create_namespace("later")
        if own_control_plane.has_controllers:  # they went on
            await appears(admin, "/api/v1/namespaces/later/serviceaccounts/default")


async def test_an_api_server_without_its_store_says_so_until_it_is_back(own_control_plane: ControlPlane) -> None:
    async with own_control_plane.admin() as admin:
        await admin.create_namespace("kept")
        await own_control_plane.stop_etcd()
        await answers(admin, 500, "GET", "/readyz")
        await own_control_plane.start_etcd()
        await answers(admin, 200, "GET", "/api/v1/namespaces/kept")  # each kind has a connection of its own to etcd
        own_control_plane.require_alive()


async def test_a_paused_api_server_answers_nobody_until_it_goes_on(own_control_plane: ControlPlane) -> None:
    async with own_control_plane.admin() as admin:
        own_control_plane.pause_api_server()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await admin.get("/readyz")
        own_control_plane.resume_api_server()
        await answers(admin, 200, "GET", "/readyz")
