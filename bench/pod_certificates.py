"""Certificates for pods by Kubernetes' own requests: from the kubelets' asking to the answer, a thousand at once.

    python -m bench.pod_certificates [--json] [--requests N]

The API server, etcd and controller manager are those of `tests.cluster`; the CA is its daemon, with its logs and its
synced issuance log. Ten kubelets ask for their pods, as they do when they start anew, some requests of each under way
at a time. `p50` and `p99` are from the sending of a request until a watch shows its certificate, `total` is from the
first sending to the last certificate.

The bare client (`bench/pod_certificates_client.py`, in a process of its own) answers as many requests of the same
kubelets for another signer: with certificates that were made before, by as many workers, once all are there. `ratio`
compares the total with the time that the kubelets then took to ask and the bare client to write, one after the other.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property, partial
from pathlib import Path

import aiohttp
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from bench.cluster_ca import NAMESPACE, MeasuredCA, at_once, measured_ca, soon
from bench.kubeconfig import address, tls_context
from bench.process import Party, party
from ca.platform.kubernetes.requests.queue import WORKERS
from tests.cluster.build import built
from tests.cluster.client import JSON, Client
from tests.cluster.control_plane import ControlPlane
from tests.cluster.waiting import answers

KUBELETS = 10
UNDER_WAY = 64  # requests that are being sent at a time, of all kubelets
OURS, BARE = "bench.invalid/ours", "bench.invalid/bare"
_SHOP = "shop"
_URL = f"/apis/certificates.k8s.io/v1/namespaces/{_SHOP}/podcertificaterequests"
_NO_NAME = x509.Name([])


@dataclass(frozen=True)
class Result:
    """Of so many requests at once; times in seconds.

    Args:
        requests: how many.
        p50: the time to the certificate that half of them stay below.
        p99: the one that all but a hundredth stay below.
        total: until all had theirs.
        asked: how long the kubelets took to ask for the certificates of the bare client.
        written: how long it took to write them.
        ratio: of the two to the total.
        cpu_ms: the processor time of the CA for one.
        bare_cpu_ms: that of the bare client.
    """

    requests: int
    p50: float
    p99: float
    total: float
    asked: float
    written: float
    ratio: float
    cpu_ms: float
    bare_cpu_ms: float


class Pod:
    """A pod, its kubelet, and the key for which that wants a certificate.

    Args:
        pod: as the API server has it.
        account: its service account.
        node: where it runs.
        kubelet: asks the API server as that node.
    """

    def __init__(self, pod: JSON, account: JSON, node: JSON, kubelet: Client) -> None:
        self.uid, self.kubelet = str(pod["metadata"]["uid"]), kubelet
        self._pod, self._account, self._node = pod["metadata"], account["metadata"], node["metadata"]
        self._key = ec.generate_private_key(ec.SECP256R1())

    def request(self, signer: str) -> JSON:
        """What the kubelet asks for."""
        owner = {"apiVersion": "v1", "kind": "Pod", "name": self._pod["name"], "uid": self.uid}
        return {
            "metadata": {"generateName": "req-", "ownerReferences": [owner]},
            "spec": {
                "signerName": signer,
                "podName": self._pod["name"],
                "podUID": self.uid,
                "serviceAccountName": self._account["name"],
                "serviceAccountUID": self._account["uid"],
                "nodeName": self._node["name"],
                "nodeUID": self._node["uid"],
                "maxExpirationSeconds": 86400,
                "stubPKCS10Request": self._csr,
            },
        }

    def status(self, issuer: ec.EllipticCurvePrivateKey) -> JSON:
        """An answer to it, as a CA gives it."""
        begin = datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=2)
        end = begin + timedelta(days=1)
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier("spiffe://cluster.local/ns/shop/sa/web")])
        builder = x509.CertificateBuilder(
            x509.Name([x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "cluster.local")]),
            _NO_NAME,
            self._key.public_key(),
            x509.random_serial_number(),
            begin,
            end,
        )
        leaf = builder.add_extension(names, critical=True).sign(issuer, hashes.SHA256())
        condition = {"type": "Issued", "status": "True", "reason": "Issued", "message": "issued"}
        return {
            "conditions": [condition | {"lastTransitionTime": _timestamp(begin)}],
            "certificateChain": leaf.public_bytes(Encoding.PEM).decode(),
            "notBefore": _timestamp(begin),
            "notAfter": _timestamp(end),
            "beginRefreshAt": _timestamp(begin + timedelta(hours=12)),
        }

    @cached_property
    def _csr(self) -> str:
        csr = x509.CertificateSigningRequestBuilder().subject_name(_NO_NAME).sign(self._key, hashes.SHA256())
        return base64.b64encode(csr.public_bytes(Encoding.DER)).decode()


async def measure(plane: ControlPlane, folder: Path, *, requests: int) -> Result:
    """The figures of one run."""
    async with AsyncExitStack() as stack:
        admin = await stack.enter_async_context(plane.admin())
        pods = await _pods(plane, admin, stack, requests)
        settings = {"signer": OURS}
        ca = await stack.enter_async_context(measured_ca(plane, folder / "ca", settings=settings))
        for pod in pods[-KUBELETS:]:  # one of each node: connections are made, and the authorizer has heard of the pods
            made = await answers(pod.kubelet, 201, "POST", _URL, pod.request(OURS))
            await soon(partial(_is_issued, admin, made["metadata"]["name"]))
        client = stack.enter_context(party("bench.pod_certificates_client", str(plane.kubeconfig), log=folder / "bare"))
        seconds, total, cpu = await _ours(plane, ca, pods)
        asked, told = await _bare(pods, client)
    return Result(
        requests,
        p50=round(seconds[len(seconds) // 2], 3),
        p99=round(seconds[len(seconds) * 99 // 100], 3),
        total=round(total, 2),
        asked=round(asked, 2),
        written=round(told["seconds"], 2),
        ratio=round((asked + told["seconds"]) / total, 3),
        cpu_ms=round(cpu / requests * 1000, 2),
        bare_cpu_ms=round(told["cpu"] / requests * 1000, 2),
    )


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.pod_certificates", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--requests", type=int, default=1000, help="how many at once (default 1000)")
    arguments = parser.parse_args()
    if built() is None:
        parser.error("the servers are not built: make test-cluster")
    with tempfile.TemporaryDirectory(prefix="bench-pods-") as base, ControlPlane() as plane:
        result = asyncio.run(measure(plane, Path(base), requests=arguments.requests))
    print(json.dumps(asdict(result), indent=2) if arguments.json else table(result))


async def _pods(plane: ControlPlane, admin: Client, stack: AsyncExitStack, count: int) -> list[Pod]:
    """Pods on all nodes in turn, with the kubelets of these."""
    for name in (NAMESPACE, _SHOP):
        await admin.create_namespace(name)
    account = await admin.create_service_account(_SHOP, "web")
    nodes = [await admin.create_node(f"node-{number}") for number in range(KUBELETS)]
    kubelets = [await stack.enter_async_context(plane.kubelet(node["metadata"]["name"])) for node in nodes]
    sources = [
        {"podCertificate": {"signerName": signer, "keyType": "ECDSAP256", "credentialBundlePath": signer[-4:]}}
        for signer in (OURS, BARE)
    ]
    volumes: list[JSON] = [{"name": "certificates", "projected": {"sources": sources}}]
    made = await at_once(
        [
            admin.create_pod(
                _SHOP, f"web-{n}", service_account="web", node=nodes[n % KUBELETS]["metadata"]["name"], volumes=volumes
            )
            for n in range(count)
        ]
    )
    return [Pod(pod, account, nodes[n % KUBELETS], kubelets[n % KUBELETS]) for n, pod in enumerate(made)]


async def _ours(plane: ControlPlane, ca: MeasuredCA, pods: Sequence[Pod]) -> tuple[list[float], float, float]:
    """The sorted times to the certificate, the time until all were there, and the CPU time of the CA; seconds."""
    async with _session(plane) as session:
        async with session.get(_URL, params={"limit": "1"}) as page:
            version = (await page.json())["metadata"]["resourceVersion"]
        seen: dict[str, float] = {}
        watching = asyncio.create_task(_watch(session, version, seen, len(pods)))
        cpu, begin = (await ca.cost()).cpu, time.perf_counter()
        sent = await _ask(pods, OURS)
        await watching
    total = max(seen.values()) - begin
    times = sorted(seen[name] - when for name, (when, _) in sent.items())
    return times, total, (await ca.cost()).cpu - cpu


async def _bare(pods: Sequence[Pod], client: Party) -> tuple[float, dict[str, float]]:
    """The seconds that asking takes, and what the bare client tells of its writing."""
    issuer, begin = ec.generate_private_key(ec.SECP256R1()), time.perf_counter()
    sent = await _ask(pods, BARE)
    asked = time.perf_counter() - begin
    asked_for = [request for _, request in sent.values()]
    bodies = [request | {"status": pod.status(issuer)} for pod, request in zip(pods, asked_for, strict=True)]
    client.tell({"url": _URL, "bodies": bodies, "workers": WORKERS})
    return asked, await asyncio.to_thread(client.answer)


async def _ask(pods: Sequence[Pod], signer: str) -> dict[str, tuple[float, JSON]]:
    """Have the kubelets ask for certificates; by name, when each request was sent, and what became of it."""

    async def one(pod: Pod, body: JSON) -> tuple[str, tuple[float, JSON]]:
        begin = time.perf_counter()
        made = await pod.kubelet.create(_URL, body)
        return made["metadata"]["name"], (begin, made)

    return dict(await at_once([one(pod, pod.request(signer)) for pod in pods], most=UNDER_WAY))


async def _watch(session: aiohttp.ClientSession, version: str, seen: dict[str, float], count: int) -> None:
    """Note when each request of ours has its certificate, until so many have."""
    params = {"watch": "true", "fieldSelector": f"spec.signerName={OURS}"}
    while True:  # the API server ends a watch that reads too slowly, as on a busy machine
        async with session.get(_URL, params=params | {"resourceVersion": version}) as events:
            async for line in events.content:
                request = json.loads(line)["object"]
                version = request["metadata"]["resourceVersion"]
                if request["status"].get("certificateChain"):
                    seen.setdefault(request["metadata"]["name"], time.perf_counter())
                if len(seen) == count:
                    return


@asynccontextmanager
async def _session(plane: ControlPlane) -> AsyncIterator[aiohttp.ClientSession]:
    kubeconfig = str(plane.kubeconfig)
    connector = aiohttp.TCPConnector(ssl=tls_context(kubeconfig))
    async with aiohttp.ClientSession(address(kubeconfig), connector=connector, read_bufsize=1 << 20) as session:
        yield session


async def _is_issued(admin: Client, name: str) -> bool:
    return "certificateChain" in (await admin.get(f"{_URL}/{name}")).get("status", {})


def _timestamp(instant: datetime) -> str:
    return f"{instant:%Y-%m-%dT%H:%M:%SZ}"


def table(result: Result) -> str:
    """The figures for people."""
    told = (
        f"{result.requests} requests of {KUBELETS} kubelets, {UNDER_WAY} under way at a time, {WORKERS} workers, "
        f"{os.cpu_count()} processors"
    )
    head = (
        f"{'p50 s':>8}{'p99 s':>8}{'total s':>9}{'CA CPU ms':>11}{'bare: asked s':>15}{'written s':>11}{'CPU ms':>8}"
        f"{'ratio':>7}"
    )
    line = (
        f"{result.p50:>8.2f}{result.p99:>8.2f}{result.total:>9.2f}{result.cpu_ms:>11.2f}{result.asked:>15.2f}"
        f"{result.written:>11.2f}{result.bare_cpu_ms:>8.2f}{result.ratio:>7.2f}"
    )
    return f"{told}\n{head}\n{line}"


if __name__ == "__main__":
    main()
