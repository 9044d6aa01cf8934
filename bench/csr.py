"""Certificates over the network: full calls over mutual TLS gRPC, as shares of what the key operations alone allow.

    python -m bench.csr [--json] [--seconds N] [--only certificates|tokens]

The server is the CA as its daemon runs it, with its logs and its synced issuance log; the callers are gRPC's own client
with its own TLS, in another process, each on a connection of its own. `create` is Istio's CreateCertificate with
mutual TLS, `sign` is our batch of 50, `empty` is an empty method on the same server: what gRPC, TLS and the door cost.

`review`, `cached` and `offline` are CreateCertificate on Kubernetes, with the tokens of pods: the CA's daemon at a real
API server, if that is built (`bench/csr_kubernetes.py`). `of create` compares each with mutual TLS, measured right
before. For orientation: istiod answers 79 such calls a second however many call, for its API client limits itself to
80 requests a second.

The limit is one signature check of a CSR and one signature, on one processor, measured between the others. `share` is
the rate as a share of it. `CPU share` compares the server's processor time for a certificate with that of the limit:
what the share would be if the server had a processor to itself and nothing else to wait for.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from bench.csr_kubernetes import MODES, check, make_pods, token_ca
from bench.process import Party, cpu_seconds, party
from tests.cluster.build import built
from tests.cluster.control_plane import ControlPlane

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
TOKEN_CALLERS = (8, 64)
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
    share_of_empty: float | None
    share_of_create: float | None  # with tokens: of the same call with mutual TLS, right before


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


def measure(seconds: float, *, certificates: bool = True, tokens: bool = True) -> tuple[float, list[Figures]]:
    """The limit, and the figures of all runs."""
    with tempfile.TemporaryDirectory(prefix="bench-csr-") as base:
        folder = Path(base)
        with party("bench.csr_server", base, log=folder / "server.log") as server:
            port = server.answer()["port"]
            with party("bench.csr_client", base, str(port), log=folder / "client.log") as client:
                bench = Bench(seconds, client, lambda: server.cpu_seconds)
                for kind, callers in RUNS if certificates else ():
                    bench.run(kind, callers)
                if tokens:
                    with ControlPlane() as plane:
                        asyncio.run(_with_tokens(bench, plane, folder))
    return bench.figures()


class Bench:
    """Runs one kind of call after the other, and measures the limit in between.

    Args:
        seconds: how long each run takes.
        client: the callers with certificates.
        server_cpu: the processor time of their server so far.
    """

    def __init__(self, seconds: float, client: Party, server_cpu: Callable[[], float]) -> None:
        self._seconds, self._client, self._server_cpu = seconds, client, server_cpu
        self._limits = [limit_per_second()]
        self._found: list[Run] = []

    def run(self, kind: str, callers: int) -> None:
        """Have the callers with certificates call."""
        self._found.append(self._run(kind, kind, callers, self._client, self._server_cpu))

    def run_beside_create(self, kind: str, callers: int, client: Party, server_cpu: Callable[[], float]) -> float:
        """Have callers with tokens call, right after as many with certificates; how many calls those made."""
        create = self._run("create", "create", callers, self._client, self._server_cpu)
        run = self._run(kind, "token", callers, client, server_cpu)
        self._found.append(replace(run, create=create.calls_per_second))
        return run.result["calls"]

    def figures(self) -> tuple[float, list[Figures]]:
        """The limit, and what was found."""
        limit = statistics.median(self._limits)
        empty = {run.callers: run.calls_per_second for run in self._found if run.kind == "empty"}
        return limit, [_figures(run, limit=limit, empty=empty.get(run.callers)) for run in self._found]

    def _run(self, kind: str, order: str, callers: int, client: Party, server_cpu: Callable[[], float]) -> Run:
        client.tell({"kind": order, "callers": callers, "seconds": self._seconds})
        client.answer()  # it is warm
        before = server_cpu()
        result = client.answer()
        run = Run(kind, callers, result, server_cpu() - before)
        self._limits.append(limit_per_second())
        return run


@dataclass(frozen=True)
class Run:
    """What one run told; `create` is the rate of the calls with certificates that it is compared with."""

    kind: str
    callers: int
    result: dict[str, float]
    cpu: float
    create: float | None = None

    @property
    def calls_per_second(self) -> float:
        """The rate."""
        return self.result["calls"] / self.result["wall"]


async def _with_tokens(bench: Bench, plane: ControlPlane, folder: Path) -> None:
    """Callers with tokens, verified in each of the ways."""
    await make_pods(plane, folder)
    for mode in MODES:
        async with token_ca(plane, mode, folder) as ca:
            with party("bench.csr_client", str(folder), str(ca.port), log=folder / f"{mode}.log") as client:
                cpu = partial(cpu_seconds, ca.pid)
                calls = [
                    await asyncio.to_thread(bench.run_beside_create, mode, callers, client, cpu)
                    for callers in TOKEN_CALLERS
                ]
            check(ca, mode, sum(calls))


def _figures(run: Run, *, limit: float, empty: float | None) -> Figures:
    each = BATCH if run.kind == "sign" else 1
    calls, result = run.calls_per_second, run.result
    cpu_of_one = run.cpu / (result["calls"] * each)
    return Figures(
        kind=run.kind,
        callers=run.callers,
        calls_per_second=round(calls, 1),
        certificates_per_second=0 if run.kind == "empty" else round(calls * each, 1),
        p50_ms=round(result["p50"] * 1000, 2),
        p99_ms=round(result["p99"] * 1000, 2),
        server_cpu_us=round(cpu_of_one * 1e6, 1),
        client_cpu_us=round(result["client_cpu"] / result["calls"] * 1e6, 1),
        share_of_limit=round(calls * each / limit, 3),
        cpu_share_of_limit=round(1 / limit / cpu_of_one, 3),
        share_of_empty=None if empty is None else round(calls * each / empty, 3),
        share_of_create=None if run.create is None else round(calls / run.create, 3),
    )


def table(limit: float, results: list[Figures]) -> str:
    """The figures for people."""
    head = (
        f"{'call':<8}{'callers':>8}{'calls/s':>9}{'certs/s':>9}{'p50 ms':>8}{'p99 ms':>8}{'server us':>11}{'share':>7}"
    )
    lines = [
        f"limit: {limit:.0f} CSR checks and signatures a second on one processor",
        head + f"{'CPU share':>11}{'of empty':>10}{'of create':>11}",
    ]
    lines += [
        f"{one.kind:<8}{one.callers:>8}{one.calls_per_second:>9.0f}{one.certificates_per_second:>9.0f}{one.p50_ms:>8.2f}"
        f"{one.p99_ms:>8.2f}{one.server_cpu_us:>11.0f}{one.share_of_limit:>7.2f}{one.cpu_share_of_limit:>11.2f}"
        f"{_or_nothing(one.share_of_empty):>10}{_or_nothing(one.share_of_create):>11}"
        for one in results
    ]
    aims = ", ".join(f"{kind} {aim}" for kind, aim in AIMS.items())
    lines.append(f"Aims, as shares of the limit: {aims}. Batches of {BATCH}; {os.cpu_count()} processors.")
    if not MODES.keys() & {one.kind for one in results}:
        lines.append(f"Left out: {', '.join(MODES)}; they need the API server that `make test-cluster` builds.")
    return "\n".join(lines)


def _or_nothing(share: float | None) -> str:
    return "" if share is None else f"{share:.2f}"


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.csr", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--seconds", type=float, default=3.0, help="how long each run takes (default 3)")
    parser.add_argument("--only", choices=["certificates", "tokens"], help="callers of one kind only")
    arguments = parser.parse_args()
    certificates = arguments.only != "tokens"
    tokens = arguments.only != "certificates" and built() is not None
    if not certificates and not tokens:
        parser.error("the servers are not built: make test-cluster")
    limit, results = measure(arguments.seconds, certificates=certificates, tokens=tokens)
    if arguments.json:
        print(json.dumps({"limit_per_second": limit, "runs": [asdict(result) for result in results]}, indent=2))
    else:
        print(table(limit, results))


if __name__ == "__main__":
    main()
