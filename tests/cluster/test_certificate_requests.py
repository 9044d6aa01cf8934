"""The signers of Kubernetes' two certificate APIs, in a real CA against the real API server."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from istio_auth.bundle import BundleSet, TrustBundle
from istio_auth.pem import read_certificates
from istio_auth.spiffe_id import TrustDomain
from istio_auth.verify import verify_chain
from tests.cluster.client import JSON, Client
from tests.cluster.control_plane import ControlPlane
from tests.cluster.running_ca import RunningCA, Settings, account_id, published_roots
from tests.cluster.waiting import answers, eventually
from tests.fakes.certificate_requests import AnyKey, csr, in_pem, stub

API = "/apis/certificates.k8s.io/v1"
CSRS = f"{API}/certificatesigningrequests"
_DOMAIN = TrustDomain("cluster.local")


@pytest.fixture
async def ca(control_plane: ControlPlane, namespace: str, tmp_path: Path) -> AsyncIterator[RunningCA]:
    settings: Settings = {"sign_requests": True, "signer": f"{namespace}.test/workload"}
    async with RunningCA(
        control_plane.kubeconfig, tmp_path / "ca", namespace, managed=[namespace], settings=settings
    ) as running:
        await running.leads()
        yield running


class Pods:
    """Pods of a service account on a node of their own, and the kubelet that asks for their certificates."""

    def __init__(self, plane: ControlPlane, admin: Client, namespace: str) -> None:
        self.signer = f"{namespace}.test/workload"
        self.path = f"{API}/namespaces/{namespace}/podcertificaterequests"
        self._plane, self._admin, self._namespace = plane, admin, namespace

    async def made(self, count: int) -> None:
        self.account = await self._admin.create_service_account(self._namespace, "web")
        self.node = await self._admin.create_node(f"node-{self._namespace}")
        source = {"signerName": self.signer, "keyType": "ECDSAP256", "credentialBundlePath": "bundle.pem"}
        volumes = [{"name": "certificate", "projected": {"sources": [{"podCertificate": source}]}}]
        self.pods = [
            await self._admin.create_pod(
                self._namespace, f"web-{n}", service_account="web", node=self.node["metadata"]["name"], volumes=volumes
            )
            for n in range(count)
        ]

    def kubelet(self) -> Client:
        return self._plane.kubelet(self.node["metadata"]["name"])

    def request(self, pod: JSON, key: AnyKey, **spec: object) -> JSON:
        """What the kubelet asks for."""
        metadata = {
            "generateName": "req-",
            "ownerReferences": [
                {"apiVersion": "v1", "kind": "Pod", "name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"]}
            ],
        }
        return {
            "metadata": metadata,
            "spec": {
                "signerName": self.signer,
                "podName": pod["metadata"]["name"],
                "podUID": pod["metadata"]["uid"],
                "serviceAccountName": "web",
                "serviceAccountUID": self.account["metadata"]["uid"],
                "nodeName": self.node["metadata"]["name"],
                "nodeUID": self.node["metadata"]["uid"],
                "stubPKCS10Request": stub(csr(key)),
                **spec,
            },
        }

    async def answer(self, name: str) -> JSON:
        """The request once it has its answer."""

        async def answered() -> JSON | None:
            found = await self._admin.get(f"{self.path}/{name}")
            return found if found.get("status", {}).get("conditions") else None

        return await eventually(answered)


@pytest.fixture
async def pods(control_plane: ControlPlane, admin: Client, namespace: str) -> Pods:
    found = Pods(control_plane, admin, namespace)
    await found.made(1)
    return found


async def asked(client: Client, path: str, request: JSON) -> str:
    """The name of a request, once the authorizer of the API server knows of what allows it."""
    return str((await answers(client, 201, "POST", path, request))["metadata"]["name"])


async def bundles(admin: Client, namespace: str) -> BundleSet:
    roots = read_certificates((await published_roots(admin, namespace)).encode())
    return BundleSet((TrustBundle(_DOMAIN, roots),))


async def test_a_pod_gets_its_certificate_from_a_plain_volume(
    ca: RunningCA, admin: Client, namespace: str, pods: Pods
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    async with pods.kubelet() as kubelet:
        request = pods.request(pods.pods[0], key, maxExpirationSeconds=7200)
        status = (await pods.answer(await asked(kubelet, pods.path, request)))["status"]
    assert [each["type"] for each in status["conditions"]] == ["Issued"]
    chain = read_certificates(status["certificateChain"].encode())
    now = datetime.now(UTC)
    assert str(verify_chain(chain, await bundles(admin, namespace), now)) == account_id(namespace, "web")
    assert chain[0].public_key() == key.public_key()
    begins, refresh, ends = (
        datetime.fromisoformat(status[name]) for name in ("notBefore", "beginRefreshAt", "notAfter")
    )
    assert (begins, ends) == (chain[0].not_valid_before_utc, chain[0].not_valid_after_utc)
    assert timedelta(hours=1) <= ends - begins <= timedelta(seconds=7200)
    assert begins + timedelta(minutes=10) <= refresh <= ends - timedelta(minutes=10)


async def test_a_key_that_is_not_signed_is_denied_and_one_that_works_is_named(
    ca: RunningCA, namespace: str, pods: Pods
) -> None:
    async with pods.kubelet() as kubelet:
        request = pods.request(pods.pods[0], ed25519.Ed25519PrivateKey.generate())
        denied = await pods.answer(await asked(kubelet, pods.path, request))
        [condition] = denied["status"]["conditions"]
        assert (condition["type"], condition["reason"]) == ("Denied", "UnsupportedKeyType")
        assert "ECDSAP256" in condition["message"]
        line = await ca.process.says("certificate refused")
        assert "UnsupportedKeyType" in str(line["reason"])
        mended = pods.request(pods.pods[0], ec.generate_private_key(ec.SECP256R1()))
        issued = await pods.answer(await asked(kubelet, pods.path, mended))
    assert [each["type"] for each in issued["status"]["conditions"]] == ["Issued"]


async def test_all_pods_of_a_kubelet_that_starts_anew_get_theirs(
    ca: RunningCA, admin: Client, control_plane: ControlPlane, namespace: str
) -> None:
    pods = Pods(control_plane, admin, namespace)
    await pods.made(60)
    key = ec.generate_private_key(ec.SECP256R1())
    async with pods.kubelet() as kubelet:
        await asked(kubelet, pods.path, pods.request(pods.pods[0], key))
        requests = [pods.request(pod, key) for pod in pods.pods]
        names = await asyncio.gather(*(asked(kubelet, pods.path, request) for request in requests))
    answered = await asyncio.gather(*map(pods.answer, names))
    assert {each["type"] for answer in answered for each in answer["status"]["conditions"]} == {"Issued"}
    assert not ca.told("a request could not be answered")


async def test_who_is_no_kubelet_gets_nothing_for_a_pod_that_is_not_there(
    ca: RunningCA, admin: Client, namespace: str, pods: Pods
) -> None:
    ghost = {"metadata": {"name": "ghost", "uid": "00000000-0000-4000-8000-000000000000"}}
    key = ec.generate_private_key(ec.SECP256R1())
    request = pods.request(ghost, key)
    request["metadata"].pop("ownerReferences")  # the garbage collector would remove it
    made = await admin.create(pods.path, request)
    line = await ca.process.says("a request waits")
    assert "ghost is not there" in str(line["reason"])
    assert not (await admin.get(f"{pods.path}/{made['metadata']['name']}")).get("status", {}).get("conditions")
    real = await admin.create(pods.path, pods.request(pods.pods[0], key))
    answer = await pods.answer(real["metadata"]["name"])
    assert [each["type"] for each in answer["status"]["conditions"]] == ["Issued"]


def signing_request(signer: str, key: ec.EllipticCurvePrivateKey, *names: str, **spec: object) -> JSON:
    uris = [x509.UniformResourceIdentifier(name) for name in names]
    return {
        "metadata": {"generateName": "web-"},
        "spec": {
            "signerName": signer,
            "request": in_pem(csr(key, *uris)),
            "usages": ["digital signature", "client auth", "server auth"],
            **spec,
        },
    }


async def answered_csr(admin: Client, name: str) -> JSON:
    """The request once it has a certificate, or never gets one."""

    async def answered() -> JSON | None:
        status = (await admin.get(f"{CSRS}/{name}")).get("status", {})
        final = {each["type"] for each in status.get("conditions", ())} & {"Denied", "Failed"}
        return status if final or status.get("certificate") else None

    return await eventually(answered)


async def test_a_service_account_asks_for_its_own_identity_and_no_other(
    ca: RunningCA, admin: Client, control_plane: ControlPlane, namespace: str
) -> None:
    await admin.create_service_account(namespace, "web")
    await allow_signing_requests(admin, namespace)
    token = await admin.service_account_token(namespace, "web", audiences=[])
    signer, own = f"{namespace}.test/workload", account_id(namespace, "web")
    key = ec.generate_private_key(ec.SECP256R1())
    async with control_plane.client(token) as web:
        foreign = signing_request(signer, key, account_id(namespace, "other"))
        denied = await answered_csr(admin, await asked(web, CSRS, foreign))
        assert [each["type"] for each in denied["conditions"]] == ["Denied"]
        assert own in denied["conditions"][0]["message"] + str((await ca.process.says("certificate refused"))["reason"])
        made = await asked(web, CSRS, signing_request(signer, key, own, expirationSeconds=1200))
    issued = await answered_csr(admin, made)
    assert [each["type"] for each in issued["conditions"]] == ["Approved"]
    chain = read_certificates(base64.b64decode(issued["certificate"]))
    now = datetime.now(UTC)
    assert str(verify_chain(chain, await bundles(admin, namespace), now)) == own
    assert chain[0].public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) == (
        key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    )
    assert chain[0].not_valid_after_utc - now <= timedelta(seconds=1201)


async def test_an_approval_by_somebody_else_does_not_make_a_foreign_identity_acceptable(
    ca: RunningCA, admin: Client, namespace: str
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    request = signing_request(f"{namespace}.test/workload", key, account_id(namespace, "web"))
    ca.pause()
    try:
        made = await admin.create(CSRS, request)
        approved = {"type": "Approved", "status": "True", "reason": "Operator", "message": "by hand"}
        made["status"] = {"conditions": [approved]}
        await admin.replace(f"{CSRS}/{made['metadata']['name']}/approval", made)
    finally:
        ca.resume()
    answer = await answered_csr(admin, made["metadata"]["name"])
    assert sorted(each["type"] for each in answer["conditions"]) == ["Approved", "Failed"]
    assert not answer.get("certificate")


async def allow_signing_requests(admin: Client, namespace: str) -> None:
    """Let the service account of the namespace make requests; nobody may by default."""
    rules = [{"apiGroups": ["certificates.k8s.io"], "resources": ["certificatesigningrequests"], "verbs": ["create"]}]
    name = f"signing-{namespace}"
    group = "rbac.authorization.k8s.io"
    await admin.create(f"/apis/{group}/v1/clusterroles", {"metadata": {"name": name}, "rules": rules})
    binding = {
        "metadata": {"name": name},
        "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": "web", "namespace": namespace}],
    }
    await admin.create(f"/apis/{group}/v1/clusterrolebindings", binding)
