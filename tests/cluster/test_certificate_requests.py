"""The signers of Kubernetes' two certificate APIs, in a real CA against the real API server."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from istio_auth.bundle import BundleSet, TrustBundle
from istio_auth.pem import read_certificates
from istio_auth.spiffe_id import TrustDomain
from istio_auth.verify import verify_chain
from tests.cluster.certificate_requests import CSRS, Pods, allow_signing_requests, answered_csr, asked, signing_request
from tests.cluster.client import Client
from tests.cluster.control_plane import ControlPlane
from tests.cluster.running_ca import RunningCA, Settings, account_id, published_roots

_DOMAIN = TrustDomain("cluster.local")


@pytest.fixture
async def ca(control_plane: ControlPlane, namespace: str, tmp_path: Path) -> AsyncIterator[RunningCA]:
    settings: Settings = {"sign_requests": True, "signer": f"{namespace}.test/workload"}
    async with RunningCA(
        control_plane.kubeconfig, tmp_path / "ca", namespace, managed=[namespace], settings=settings
    ) as running:
        await running.leads()
        yield running


@pytest.fixture
async def pods(control_plane: ControlPlane, admin: Client, namespace: str) -> Pods:
    found = Pods(control_plane, admin, namespace)
    await found.made(1)
    return found


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
