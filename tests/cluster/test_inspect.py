"""`ca-cli inspect` reads secrets and config maps where they are, and shows no key."""

from __future__ import annotations

import asyncio
import base64

from tests.cluster.client import Client
from tests.cluster.control_plane import ControlPlane
from tests.command import Done, ca_cli
from tests.fakes.authority import FakeAuthority

WEB = "spiffe://cluster.local/ns/shop/sa/web"


async def inspect(plane: ControlPlane, namespace: str, source: str) -> Done:
    """What the command says of an object."""
    return await asyncio.to_thread(
        ca_cli, "inspect", source, "-n", namespace, "--kubeconfig", plane.kubeconfig, "--output", "json"
    )


async def test_a_secret_of_a_service_account_is_told_like_a_folder(
    control_plane: ControlPlane, admin: Client, namespace: str
) -> None:
    ca = FakeAuthority()
    svid = ca.svid("/ns/shop/sa/web")
    data = {
        "cert-chain.pem": svid.chain_pem(),
        "key.pem": svid.key_pem(),
        "root-cert.pem": ca.bundle().to_pem(),
    }
    body = {
        "metadata": {"name": "istio.web"},
        "type": "istio.io/key-and-cert",
        "data": {key: base64.b64encode(value).decode() for key, value in data.items()},
    }
    await admin.create(f"/api/v1/namespaces/{namespace}/secrets", body)
    done = await inspect(control_plane, namespace, "secret/istio.web")
    assert (done.code, done.err) == (0, "")
    chain, bundle, key = done.json["documents"]
    assert chain["certificates"][0]["spiffe_id"] == WEB
    assert (chain["source"], bundle["kind"]) == ("secret/istio.web/cert-chain.pem", "bundle")
    assert (key["key"], key["unusual"]) == ("P-256", [])
    assert "PRIVATE" not in done.out


async def test_a_config_map_with_roots_is_told(control_plane: ControlPlane, admin: Client, namespace: str) -> None:
    data = {"root-cert.pem": FakeAuthority().bundle().to_pem().decode(), "note": "not a certificate"}
    await admin.create(f"/api/v1/namespaces/{namespace}/configmaps", {"metadata": {"name": "roots"}, "data": data})
    done = await inspect(control_plane, namespace, "configmap/roots")
    assert (done.code, done.err) == (0, "")
    assert [document["kind"] for document in done.json["documents"]] == ["ca-certificate"]


async def test_what_is_not_there_is_said(control_plane: ControlPlane, admin: Client, namespace: str) -> None:
    done = await inspect(control_plane, namespace, "secret/istio.web")
    assert (done.code, done.out) == (2, "")
    assert f"no secret istio.web in the namespace {namespace}" in done.err
    await admin.create(f"/api/v1/namespaces/{namespace}/secrets", {"metadata": {"name": "istio.web"}})
    assert "holds no certificate" in (await inspect(control_plane, namespace, "secret/istio.web")).err
