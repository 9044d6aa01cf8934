"""The callers that `bench.csr` sends: gRPC's own client and TLS, none of ours; each with a connection of its own.

Reads lines of JSON that say what to do, and answers each with one: how many calls, how long each took.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from bench.csr_server import WEB
from istio_auth.proto import node_pb2
from istio_auth.proto.istio_ca_pb2 import IstioCertificateRequest, IstioCertificateResponse

BATCH = 50
_CSRS = 256
_CREATE = "/istio.v1.auth.IstioCertificateService/CreateCertificate"
_PAIR = ("key", "chain")
_SERVED_AS = "istiod.istio-system.svc"
_WARM_UP = 0.5  # seconds


Metadata = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Kind:
    """One kind of call."""

    path: str
    caller: str
    requests: list[bytes]
    certificates: int

    def check(self, answer: bytes) -> None:
        """Make sure that what is measured is work done."""
        if not self.certificates:
            return
        if self.caller != "node-1":
            assert len(IstioCertificateResponse.FromString(answer).cert_chain) == 2
        else:
            results = node_pb2.SignResponse.FromString(answer).results
            assert len(results) == self.certificates
            assert all(result.HasField("issued") for result in results)


def _kinds() -> dict[str, Kind]:
    csrs = [_csr() for _ in range(_CSRS)]
    pems = [csr.public_bytes(Encoding.PEM).decode() for csr in csrs]
    create = [IstioCertificateRequest(csr=pem).SerializeToString() for pem in pems]
    entries = [node_pb2.SignEntry(spiffe_id=str(WEB), csr=csr.public_bytes(Encoding.DER)) for csr in csrs]
    batches = [node_pb2.SignRequest(entries=entries[n : n + BATCH]).SerializeToString() for n in range(0, 200, BATCH)]
    return {
        "empty": Kind("/bench.Empty/Empty", "web", [b""], 0),
        "create": Kind(_CREATE, "web", create, 1),
        "token": Kind(_CREATE, "token", create, 1),
        "sign": Kind("/istio_auth.node.v1.NodeService/Sign", "node-1", batches, BATCH),
    }


def _csr() -> x509.CertificateSigningRequest:
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(WEB))])
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.add_extension(names, critical=True).sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())


def _channel(folder: Path, port: int, caller: str) -> grpc.aio.Channel:
    """A connection of its own; who shows a token shows no certificate."""
    roots = (folder / f"{caller}-roots.pem").read_bytes()
    pair = (None, None) if caller == "token" else tuple((folder / f"{caller}-{x}.pem").read_bytes() for x in _PAIR)
    credentials = grpc.ssl_channel_credentials(roots, *pair)
    options: list[tuple[str, object]] = [
        ("grpc.use_local_subchannel_pool", 1)
    ]  # else all callers would share one connection
    if caller == "token":
        options.append(("grpc.ssl_target_name_override", _SERVED_AS))
    return grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options=options)


def _metadata(folder: Path, kind: Kind, callers: int) -> list[Metadata]:
    """What each caller sends along."""
    if kind.caller != "token":
        return [()] * callers
    tokens = json.loads((folder / "tokens.json").read_text())
    return [(("authorization", f"Bearer {token}"),) for token in tokens[:callers]]


async def _call_until(
    channel: grpc.aio.Channel, kind: Kind, requests: Iterator[bytes], end: float, *, metadata: Metadata
) -> list[float]:
    call, seconds = channel.unary_unary(kind.path, None, None), list[float]()
    kind.check(await call(next(requests), metadata=metadata))
    while not seconds or time.perf_counter() < end:
        begin = time.perf_counter()
        await call(next(requests), metadata=metadata)
        seconds.append(time.perf_counter() - begin)
    return seconds


async def _measured(folder: Path, port: int, kind: Kind, callers: int, duration: float) -> dict[str, object]:
    requests = itertools.cycle(kind.requests)
    channels = [_channel(folder, port, kind.caller) for _ in range(callers)]
    each = list(zip(channels, _metadata(folder, kind, callers), strict=True))
    try:
        warm = time.perf_counter() + _WARM_UP
        await asyncio.gather(*(_call_until(one, kind, requests, warm, metadata=sent) for one, sent in each))
        begin, ready = time.perf_counter(), time.process_time()
        print(json.dumps({"warm": True}), flush=True)
        end = begin + duration
        taken = await asyncio.gather(*(_call_until(one, kind, requests, end, metadata=sent) for one, sent in each))
        wall = time.perf_counter() - begin
    finally:
        await asyncio.gather(*(channel.close(None) for channel in channels))
    seconds = sorted(itertools.chain.from_iterable(taken))
    return {
        "calls": len(seconds),
        "wall": wall,
        "p50": seconds[len(seconds) // 2],
        "p99": seconds[len(seconds) * 99 // 100],
        "client_cpu": time.process_time() - ready,
    }


def main() -> None:
    """Answer the lines on standard input."""
    folder, port, kinds = Path(sys.argv[1]), int(sys.argv[2]), _kinds()
    for line in sys.stdin:
        order = json.loads(line)
        result = asyncio.run(_measured(folder, port, kinds[order["kind"]], order["callers"], order["seconds"]))
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
