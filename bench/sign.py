"""Certificates per second in process, as a share of what the key operations alone allow.

    python -m bench.sign [--json] [--rounds N]

The limit is one signature check of the CSR and one signature of the issuer, and nothing else: `limit` below. Ours is
the whole way from the bytes of a CSR to a certificate that may leave: vetted, built from profile and grant, signed,
read back and checked (`made`), and also put on record and synced to disk (`recorded`), in batches of 50 as node agents
send them. `bare` is the limit for somebody who need not even read the key out of the CSR first.

All of them take turns within each round, and each share is the median over the rounds: the machine's noise falls on
all alike.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from ca.attest import Attested
from ca.authority.authority import Authority
from ca.authority.state import AuthorityState, IssuerState
from ca.authority.store import FileAuthorityStore
from ca.certificate.build import self_signed_root
from ca.csr import vet_csr_der
from ca.issuance_log import FileIssuanceLog, IssuanceLog, IssuanceRecord, Receipt
from ca.issuer import IssuedSVID, Issuer, Order, ReservedNames
from ca.profile import IssuanceProfile, Validity
from ca.registry import Grant
from istio_auth.keys import PrivateKey
from istio_auth.spiffe_id import SpiffeID, TrustDomain
from istio_auth.system_clock import SystemClock

BATCH = 50
SHAPES = (("P-256", "P-256"), ("P-256", "RSA-2048"), ("RSA-2048", "P-256"), ("RSA-2048", "RSA-2048"))
AIM = 0.6  # of the limit, for P-256
_LOCAL = TrustDomain("cluster.local")
_WEB = SpiffeID.for_service_account(_LOCAL, "default", "web")
_ATTESTED = Attested(SpiffeID.for_agent(_LOCAL, "node-1"), "certificate")


@dataclass(frozen=True)
class Figures:
    """Of one shape: operations or certificates a second, and shares of the limit."""

    issuer: str
    leaf: str
    bare_per_second: float
    limit_per_second: float
    made_per_second: float
    made_share: float
    made_share_of_bare: float
    recorded_per_second: float
    recorded_share: float


class NoLog:
    """An `IssuanceLog` that keeps nothing, to see what keeping costs."""

    def append_many(self, records: Sequence[IssuanceRecord]) -> list[Receipt]:
        """Pretend."""
        return [Receipt(None)] * len(records)

    def ready(self) -> str | None:
        """Always."""
        return None

    def probe(self) -> None:
        """Nothing to find out."""


def limit(csr: x509.CertificateSigningRequest, issuer: PrivateKey, message: bytes) -> None:
    """The reference: what no CA can do without, for a batch."""
    for _ in range(BATCH):
        assert csr.is_signature_valid
    for _ in range(BATCH):
        _sign(issuer, message)


def bare(csr: x509.CertificateSigningRequest, issuer: PrivateKey, message: bytes) -> None:
    """The same with the key at hand."""
    key, signature, signed = csr.public_key(), csr.signature, csr.tbs_certrequest_bytes
    for _ in range(BATCH):
        if isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, signed, ec.ECDSA(hashes.SHA256()))
        elif isinstance(key, rsa.RSAPublicKey):
            key.verify(signature, signed, padding.PKCS1v15(), hashes.SHA256())
    for _ in range(BATCH):
        _sign(issuer, message)


async def ours(issuer: Issuer, csr: bytes) -> None:
    """From the bytes of CSRs to certificates that may leave."""
    vetted = [vet_csr_der(csr) for _ in range(BATCH)]
    grant = Grant(_WEB)
    results = await issuer.issue_many([Order(grant, one.public_key, None, _ATTESTED, "request") for one in vetted])
    assert all(isinstance(result, IssuedSVID) for result in results)


async def measure(issuer_kind: str, leaf_kind: str, rounds: int, folder: Path) -> Figures:
    """The figures of one shape."""
    issuer_key = _new_key(issuer_kind)
    csr = _csr(_new_key(leaf_kind))
    message, der = csr.tbs_certrequest_bytes, csr.public_bytes(Encoding.DER)
    log = FileIssuanceLog(folder / "issuance.log")
    issuers = [_issuer(issuer_key, folder, NoLog()), _issuer(issuer_key, folder, log)]
    contestants: list[Callable[[], Awaitable[None]]] = [
        lambda: _at_once(lambda: bare(csr, issuer_key, message)),
        lambda: _at_once(lambda: limit(csr, issuer_key, message)),
        lambda: ours(issuers[0], der),
        lambda: ours(issuers[1], der),
    ]
    seconds: list[list[float]] = [[] for _ in contestants]
    for number in range(rounds + 2):
        for contestant, times in zip(contestants, seconds, strict=True):
            started = time.perf_counter()
            await contestant()
            if number >= 2:  # the first ones fill caches
                times.append(time.perf_counter() - started)
    for issuer in issuers:
        await issuer.close()
    log.close()
    return _figures(issuer_kind, leaf_kind, seconds)


def main() -> None:
    """Measure all shapes, and print them."""
    parser = argparse.ArgumentParser(prog="python -m bench.sign", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--rounds", type=int, default=100, help="more rounds, less noise (default 100)")
    arguments = parser.parse_args()
    results: list[Figures] = []
    with tempfile.TemporaryDirectory(prefix="bench-sign-") as base:
        for number, (issuer, leaf) in enumerate(SHAPES):
            folder = Path(base) / str(number)
            folder.mkdir(mode=0o700)
            results.append(asyncio.run(measure(issuer, leaf, arguments.rounds, folder)))
    if arguments.json:
        print(json.dumps([asdict(result) for result in results], indent=2))
    else:
        print(_table(results))


def _figures(issuer: str, leaf: str, seconds: Sequence[Sequence[float]]) -> Figures:
    bare_times, limit_times, made_times, recorded_times = seconds

    def share(whole: Sequence[float], part: Sequence[float]) -> float:
        return round(statistics.median(one / other for one, other in zip(whole, part, strict=True)), 3)

    def rate(times: Sequence[float]) -> float:
        return round(BATCH / statistics.median(times), 1)

    return Figures(
        issuer,
        leaf,
        bare_per_second=rate(bare_times),
        limit_per_second=rate(limit_times),
        made_per_second=rate(made_times),
        made_share=share(limit_times, made_times),
        made_share_of_bare=share(bare_times, made_times),
        recorded_per_second=rate(recorded_times),
        recorded_share=share(limit_times, recorded_times),
    )


def _table(results: Sequence[Figures]) -> str:
    lines = [
        f"{'issuer':<10}{'leaf':<10}{'limit/s':>9}{'made/s':>9}{'share':>7}{'of bare':>9}{'recorded/s':>12}{'share':>7}"
    ]
    lines += [
        f"{one.issuer:<10}{one.leaf:<10}{one.limit_per_second:>9.0f}{one.made_per_second:>9.0f}{one.made_share:>7.2f}"
        f"{one.made_share_of_bare:>9.2f}{one.recorded_per_second:>12.0f}{one.recorded_share:>7.2f}"
        for one in results
    ]
    return "\n".join([*lines, f"The aim is {AIM} of the limit for P-256. Batches of {BATCH}, one processor, medians."])


def _new_key(kind: str) -> PrivateKey:
    return ec.generate_private_key(ec.SECP256R1()) if kind == "P-256" else rsa.generate_private_key(65537, 2048)


def _csr(key: PrivateKey) -> x509.CertificateSigningRequest:
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(_WEB))])
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.add_extension(names, critical=True).sign(key, hashes.SHA256())


def _issuer(key: PrivateKey, folder: Path, log: IssuanceLog) -> Issuer:
    now = datetime.now(UTC).replace(microsecond=0)
    root = self_signed_root(_LOCAL, key, Validity(now - timedelta(days=1), now + timedelta(days=3650)))
    store = FileAuthorityStore(folder / type(log).__name__)
    stored = store.store(AuthorityState(_LOCAL, IssuerState(root, root, key=key)), expected=None)
    reserved = ReservedNames.of(_LOCAL, ["istiod.istio-system.svc"])
    return Issuer(Authority(store, stored), IssuanceProfile(), log, SystemClock(), reserved, threads=1)


def _sign(key: PrivateKey, message: bytes) -> bytes:
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(message, padding.PKCS1v15(), hashes.SHA256())
    return key.sign(message, ec.ECDSA(hashes.SHA256()))


async def _at_once(work: Callable[[], None]) -> None:
    work()


if __name__ == "__main__":
    main()
