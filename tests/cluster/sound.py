"""Whether the service accounts of a namespace have what they shall have, read by code that shares nothing with ours."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from tests.cluster.client import JSON, Client
from tests.cluster.running_ca import account_id, spiffe_id
from tests.cluster.waiting import eventually

TYPE = "istio.io/key-and-cert"
_SPKI = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


async def until_sound(admin: Client, namespace: str, ca_namespace: str, *, within: float = 90) -> Mapping[str, JSON]:
    """The secrets of all service accounts of a namespace, once each has exactly one that is valid, under one root.

    Raises:
        TimeoutError: one has not; it tells what is wrong.
    """
    found: dict[str, JSON] = {}

    async def look() -> bool | str:
        found.clear()
        found.update(await secrets(admin, namespace))
        accounts = await admin.list(f"/api/v1/namespaces/{namespace}/serviceaccounts")
        return await _wrong(admin, ca_namespace, accounts, found) or True

    async def is_sound() -> bool:
        seen.append(await look())
        return seen[-1] is True

    seen: list[bool | str] = []
    try:
        await eventually(is_sound, within=within)
    except TimeoutError:
        raise TimeoutError(f"not within {within} s: {seen[-1]}") from None
    return found


async def secrets(admin: Client, namespace: str) -> dict[str, JSON]:
    """The secrets of the type of service accounts', by name."""
    listed = await admin.list(f"/api/v1/namespaces/{namespace}/secrets", fieldSelector=f"type={TYPE}")
    return {str(each["metadata"]["name"]): each for each in listed}


async def root_of(admin: Client, ca_namespace: str) -> x509.Certificate:
    """The root that is kept in `istio-ca-secret`."""
    kept = await admin.get(f"/api/v1/namespaces/{ca_namespace}/secrets/istio-ca-secret")
    return x509.load_pem_x509_certificate(base64.b64decode(kept["data"]["ca-cert.pem"]))


def versions(found: Mapping[str, JSON]) -> dict[str, str]:
    """What grows whenever one is written."""
    return {name: str(secret["metadata"]["resourceVersion"]) for name, secret in found.items()}


async def _wrong(admin: Client, ca_namespace: str, accounts: Sequence[JSON], found: Mapping[str, JSON]) -> str:
    """What is wrong; empty if nothing is."""
    wanted = {f"istio.{each['metadata']['name']}": each for each in accounts}
    if wanted.keys() != found.keys():
        return f"missing {sorted(wanted.keys() - found.keys())[:5]}, spare {sorted(found.keys() - wanted.keys())[:5]}"
    root = await root_of(admin, ca_namespace)
    return next((words for name in wanted if (words := _fault(wanted[name], found[name], root))), "")


def _fault(account: JSON, secret: JSON, root: x509.Certificate) -> str:
    """What is wrong with one secret."""
    name, namespace = account["metadata"]["name"], account["metadata"]["namespace"]
    data = {key: base64.b64decode(value) for key, value in secret["data"].items()}
    if data.keys() != {"cert-chain.pem", "key.pem", "root-cert.pem"}:
        return f"the secret of {name} holds {sorted(data)}"
    leaf = x509.load_pem_x509_certificate(data["cert-chain.pem"])
    key = load_pem_private_key(data["key.pem"], None)
    if key.public_key().public_bytes(*_SPKI) != leaf.public_key().public_bytes(*_SPKI):
        return f"the key of {name} is not that of its certificate"
    if spiffe_id(leaf) != account_id(namespace, name):
        return f"the certificate of {name} is {spiffe_id(leaf)}'s"
    if root.public_bytes(Encoding.PEM) not in data["root-cert.pem"]:
        return f"the root is not in the secret of {name}"
    leaf.verify_directly_issued_by(root)
    owners = [each["uid"] for each in secret["metadata"]["ownerReferences"]]
    return "" if owners == [account["metadata"]["uid"]] else f"the secret of {name} is owned by {owners}"
