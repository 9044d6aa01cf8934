"""The account of the manifests may do what the CA really does, all of it and nothing else: its calls are counted."""

from __future__ import annotations

import base64
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from istio_auth.pem import write_certificates, write_private_key
from tests.cluster.certificate_requests import (
    CSRS,
    Pods,
    allow_signing_requests,
    answered_csr,
    asked,
    signing_request,
)
from tests.cluster.client import Client
from tests.cluster.control_plane import ControlPlane
from tests.cluster.manifests import Installation, ca_account, granted, rendered
from tests.cluster.running_ca import Caller, RunningCA, Settings, account_id
from tests.cluster.waiting import appears, eventually, vanishes
from tests.fakes.authority import FakeAuthority

# Roles name signers, and nobody calls them. An Event is patched when it was told for long; tests of Events see to that.
_NOT_CALLED = {"signers.certificates.k8s.io", "events.events.k8s.io"}


async def test_every_right_is_used_and_no_call_is_without_one(
    control_plane: ControlPlane, admin: Client, namespace: str, tmp_path: Path
) -> None:
    installation = Installation(namespace=namespace, signer=f"{namespace}.test/workload")
    kubeconfig = await ca_account(control_plane, tmp_path / "kubeconfig", installation)
    settings: Settings = {"sign_requests": True, "signer": installation.signer, "settle": "1s"}
    async with RunningCA(kubeconfig, tmp_path / "ca", namespace, managed=[namespace], settings=settings) as ca:
        await ca.leads()
        await use_secrets(admin, namespace)
        await use_requests(control_plane, admin, namespace, installation.signer)
        await use_token(ca, admin, namespace)
        await use_roots(admin, namespace)
        rights = {(rule.verb, rule.resource) for rule in granted(await rendered(control_plane, installation))}

        async def all_are_used() -> bool:
            return not {right for right in rights if right[1] not in _NOT_CALLED and not calls(ca, *right) > 0}

        await eventually(all_are_used)
        assert calls(ca, "create", "events.events.k8s.io") > 0
        refused = [str(line) for line in ca.process.lines() if "forbidden" in str(line)]
        # Into a namespace that is going nobody may write, whatever his rights are.
        assert not [line for line in refused if "it is being terminated" not in line]


def calls(ca: RunningCA, verb: str, resource: str) -> float:
    """How often the CA has asked this of the API server."""
    return ca.metric(f'istio_auth_ca_api_calls_total{{resource="{resource}",verb="{verb}"}}')


async def use_secrets(admin: Client, namespace: str) -> None:
    """Have secrets made, repaired and deleted, and one met that is not ours."""
    place = f"/api/v1/namespaces/{namespace}"
    await admin.create_service_account(namespace, "web")
    secret = f"{place}/secrets/istio.web"
    made = await appears(admin, secret)
    await admin.patch(secret, {"data": {"key.pem": base64.b64encode(b"none").decode()}})

    async def is_repaired() -> bool:
        found = await admin.get(secret)
        return found["data"]["key.pem"] != made["data"]["key.pem"] and len(found["data"]["key.pem"]) > 100

    await eventually(is_repaired)
    await admin.create(f"{place}/secrets", {"metadata": {"name": "istio.taken"}, "type": "Opaque"})
    await admin.create_service_account(namespace, "taken")
    await event(admin, namespace, "taken")
    await admin.create_service_account(namespace, "gone")
    await appears(admin, f"{place}/secrets/istio.gone")
    await admin.delete(f"{place}/serviceaccounts/gone")
    await vanishes(admin, f"{place}/secrets/istio.gone")


async def event(admin: Client, namespace: str, account: str) -> None:
    """Return when an Event was written on a service account."""

    async def is_told() -> bool:
        events = await admin.list(f"/apis/events.k8s.io/v1/namespaces/{namespace}/events")
        return any(each["regarding"]["name"] == account for each in events)

    await eventually(is_told)


async def use_requests(plane: ControlPlane, admin: Client, namespace: str, signer: str) -> None:
    """Have both kinds of certificate requests answered."""
    key = ec.generate_private_key(ec.SECP256R1())
    pods = Pods(plane, admin, namespace)
    await pods.made(1)
    async with pods.kubelet() as kubelet:
        await pods.answer(await asked(kubelet, pods.path, pods.request(pods.pods[0], key)))
    await allow_signing_requests(admin, namespace)
    async with plane.client(await admin.service_account_token(namespace, "web", audiences=[])) as web:
        request = signing_request(signer, key, account_id(namespace, "web"))
        await answered_csr(admin, await asked(web, CSRS, request))


async def use_token(ca: RunningCA, admin: Client, namespace: str) -> None:
    """Have somebody call with a token."""
    token = await admin.service_account_token(namespace, "web", audiences=["istio-ca"])
    caller = await Caller.of(ca, admin, namespace)
    assert (await caller.identity(token))[0] == account_id(namespace, "web")


async def use_roots(admin: Client, namespace: str) -> None:
    """Have a root taken over, so that everything with roots in it changes; and taken out of where it is not wanted."""
    authority = FakeAuthority()
    files = {
        "ca-cert.pem": write_certificates((authority.certificate,)),
        "ca-key.pem": write_private_key(authority.key),
        "cert-chain.pem": b"",
        "root-cert.pem": write_certificates((authority.certificate,)),
    }
    data = {name: base64.b64encode(content).decode() for name, content in files.items()}
    await admin.create(f"/api/v1/namespaces/{namespace}/secrets", {"metadata": {"name": "cacerts"}, "data": data})
    roots = f"/api/v1/namespaces/{namespace}/configmaps/istio-ca-root-cert"

    async def hold_both() -> bool:
        return str((await admin.get(roots))["data"]["root-cert.pem"]).count("BEGIN") == 2

    await eventually(hold_both)
    other = f"{namespace}-other"
    await admin.create_namespace(other, labels={"ca.istio.io/override": "true"})
    await appears(admin, f"/api/v1/namespaces/{other}/configmaps/istio-ca-root-cert")
    await admin.patch(f"/api/v1/namespaces/{other}", {"metadata": {"labels": {"ca.istio.io/override": "false"}}})
    await vanishes(admin, f"/api/v1/namespaces/{other}/configmaps/istio-ca-root-cert")
    await admin.delete(f"/api/v1/namespaces/{other}")
