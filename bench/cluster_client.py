"""The references of `bench.cluster`: a bare client that creates secrets, and knows nothing else.

aiohttp and JSON; no decisions, no checks, no records and no watch. Reads lines of JSON that say which secrets, and
answers each when they are there, with the seconds and the processor time it took. A line that names an issuer asks for
the same work that the CA does: each secret with a key and a certificate of its own, by cryptography's own builder.
Without one the content is ready-made, the same in all.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta

import aiohttp
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID

from bench.kubeconfig import JSON, address, tls_context

TYPE = "bench.invalid/key-and-cert"  # so that no CA looks at them


class Signer:
    """Makes the content of a secret: a key, its certificate, and the root.

    Args:
        root: the content of a secret that was made before; its root is kept.
    """

    def __init__(self, root: str) -> None:
        self._root, self._key = root, ec.generate_private_key(ec.SECP256R1())
        self._issuer = x509.Name([])
        self._usage = x509.KeyUsage(True, *(False,) * 8)  # digitalSignature, and none of the others
        self._uses = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
        self._signs = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())

    def content(self, namespace: str, account: str) -> dict[str, str]:
        """What the secret of a service account holds."""
        key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
        name = x509.UniformResourceIdentifier(f"spiffe://cluster.local/ns/{namespace}/sa/{account}")
        certificate = (
            x509.CertificateBuilder(self._issuer, x509.Name([]), key.public_key(), x509.random_serial_number())
            .not_valid_before(now)
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(self._usage, critical=True)
            .add_extension(self._uses, critical=False)
            .add_extension(self._signs, critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.SubjectAlternativeName([name]), critical=True)
            .sign(self._key, SHA256())
        )
        pem = certificate.public_bytes(Encoding.PEM)
        return {
            "cert-chain.pem": base64.b64encode(pem).decode(),
            "key.pem": base64.b64encode(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())).decode(),
            "root-cert.pem": self._root,
        }


def secret(namespace: str, account: dict[str, str], data: dict[str, str], prefix: str) -> JSON:
    """A secret of the same form and size as that of a service account."""
    owner = {"apiVersion": "v1", "kind": "ServiceAccount", "name": account["name"], "uid": account["uid"]}
    metadata = {
        "name": f"{prefix}.{account['name']}",
        "namespace": namespace,
        "labels": {"bench.invalid/issued-by": "istio-system"},
        "annotations": {"bench.invalid/service-account.name": account["name"]},
        "ownerReferences": [owner],
    }
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": TYPE, "data": data}


async def _create(session: aiohttp.ClientSession, url: str, bodies: Iterator[JSON]) -> None:
    headers = {"Content-Type": "application/json"}
    for body in bodies:  # shared by all workers: each takes the next
        async with session.post(url, data=json.dumps(body), headers=headers) as answer:
            await answer.read()
            assert answer.status == 201, answer.status


async def _created(kubeconfig: str, order: JSON) -> dict[str, float]:
    namespace, accounts, data, prefix = order["namespace"], order["accounts"], order["data"], order["prefix"]
    signer = Signer(data["root-cert.pem"]) if order["signs"] else None

    def content(account: str) -> dict[str, str]:
        return signer.content(namespace, account) if signer else data

    connector = aiohttp.TCPConnector(ssl=tls_context(kubeconfig), limit=0)
    async with aiohttp.ClientSession(address(kubeconfig), connector=connector) as session:
        url = f"/api/v1/namespaces/{namespace}/secrets"

        async def fill(some: Sequence[dict[str, str]]) -> None:
            bodies = (secret(namespace, account, content(account["name"]), prefix) for account in some)
            await asyncio.gather(*(_create(session, url, bodies) for _ in range(order["workers"])))

        async with session.get(url, params={"limit": "1"}) as answer:
            await answer.read()
        begin, cpu = time.perf_counter(), time.process_time()
        await fill(accounts)
        return {"seconds": time.perf_counter() - begin, "cpu": time.process_time() - cpu}


def main() -> None:
    """Answer the lines on standard input."""
    for line in sys.stdin:
        print(json.dumps(asyncio.run(_created(sys.argv[1], json.loads(line)))), flush=True)


if __name__ == "__main__":
    main()
