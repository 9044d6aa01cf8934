"""Certificates over the network: full calls over mutual TLS gRPC, as shares of what the key operations alone allow.

    python -m bench.csr [--json] [--seconds N]

The server is the CA as its daemon runs it, with its logs and its synced issuance log; the callers are gRPC's own client
with its own TLS, in another process, each on a connection of its own. `create` is Istio's CreateCertificate with
mutual TLS, `sign` is our batch of 50, `empty` is an empty method on the same server: what gRPC, TLS and the door cost.

The limit is one signature check of a CSR and one signature, on one processor, measured between the others. `share` is
the rate as a share of it. `CPU share` compares the server's processor time for a certificate with that of the limit:
what the share would be if the server had a processor to itself and nothing else to wait for.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from bench.process import party

BATCH = 50
RUNS = (
    ("empty", 1),
    ("create", 1),
    ("empty", 8),
    ("create", 8),
    ("empty", 64),
    ("create", 64),
    ("sign", 1),
    ("sign", 8),
)
AIMS = {"create": 0.1, "sign": 0.4}


@dataclass(frozen=True)
class Figures:
    """Of one kind of call with so many callers at once."""

    kind: str
    callers: int
    calls_per_second: float
    certificates_per_second: float
    p50_ms: float
    p99_ms: float
    server_cpu_us: float  # for a certificate; for a call of the empty method
    client_cpu_us: float  # for a call
    share_of_limit: float
    cpu_share_of_limit: float
    share_of_empty: float


def limit_per_second() -> float:
    """How often a processor can do what no CA can do without: check a CSR's signature, and make one."""
    key = ec.generate_private_key(ec.SECP256R1())
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    message, algorithm, rounds = csr.tbs_certrequest_bytes, ec.ECDSA(hashes.SHA256()), 2000
    begin = time.process_time()
    for _ in range(rounds):
        assert csr.is_signature_valid
        key.sign(message, algorithm)
    return rounds / (time.process_time() - begin)


def measure(seconds: float) -> tuple[float, list[Figures]]:
    """The limit, and the figures of all runs."""
    limits, found = [limit_per_second()], list[tuple[str, int, dict[str, float], float]]()
    with tempfile.TemporaryDirectory(prefix="bench-csr-") as base:
        folder = Path(base)
        with party("bench.csr_server", base, log=folder / "server.log") as server:
            port = server.answer()["port"]
            with party("bench.csr_client", base, str(port), log=folder / "client.log") as client:
                for kind, callers in RUNS:
                    client.tell({"kind": kind, "callers": callers, "seconds": seconds})
                    client.answer()  # it is warm
                    before = server.cpu_seconds
                    result = client.answer()
                    found.append((kind, callers, result, server.cpu_seconds - before))
                    limits.append(limit_per_second())
    limit = statistics.median(limits)
    empty = {callers: result["calls"] / result["wall"] for kind, callers, result, _ in found if kind == "empty"}
    return limit, [_figures(*one, limit=limit, empty=empty) for one in found]


def _figures(
    kind: str, callers: int, result: dict[str, float], cpu: float, *, limit: float, empty: dict[int, float]
) -> Figures:
    each = BATCH if kind == "sign" else 1
    calls = result["calls"] / result["wall"]
    cpu_of_one = cpu / (result["calls"] * each)
    return Figures(
        kind=kind,
        callers=callers,
        calls_per_second=round(calls, 1),
        certificates_per_second=0 if kind == "empty" else round(calls * each, 1),
        p50_ms=round(result["p50"] * 1000, 2),
        p99_ms=round(result["p99"] * 1000, 2),
        server_cpu_us=round(cpu_of_one * 1e6, 1),
        client_cpu_us=round(result["client_cpu"] / result["calls"] * 1e6, 1),
        share_of_limit=round(calls * each / limit, 3),
        cpu_share_of_limit=round(1 / limit / cpu_of_one, 3),
        share_of_empty=round(calls * each / empty[callers], 3),
    )


def _table(limit: float, results: list[Figures]) -> str:
    head = (
        f"{'call':<8}{'callers':>8}{'calls/s':>9}{'certs/s':>9}{'p50 ms':>8}{'p99 ms':>8}{'server us':>11}{'share':>7}"
    )
    lines = [
        f"limit: {limit:.0f} CSR checks and signatures a second on one processor",
        head + f"{'CPU share':>11}{'of empty':>10}",
    ]
    lines += [
        f"{one.kind:<8}{one.callers:>8}{one.calls_per_second:>9.0f}{one.certificates_per_second:>9.0f}{one.p50_ms:>8.2f}"
        f"{one.p99_ms:>8.2f}{one.server_cpu_us:>11.0f}{one.share_of_limit:>7.2f}{one.cpu_share_of_limit:>11.2f}"
        f"{one.share_of_empty:>10.2f}"
        for one in results
    ]
    aims = ", ".join(f"{kind} {aim}" for kind, aim in AIMS.items())
    return "\n".join(
        [*lines, f"Aims, as shares of the limit: {aims}. Batches of {BATCH}; {os.cpu_count()} processors."]
    )


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.csr", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--seconds", type=float, default=3.0, help="how long each run takes (default 3)")
    arguments = parser.parse_args()
    limit, results = measure(arguments.seconds)
    if arguments.json:
        print(json.dumps({"limit_per_second": limit, "runs": [asdict(result) for result in results]}, indent=2))
    else:
        print(_table(limit, results))


if __name__ == "__main__":
    main()
