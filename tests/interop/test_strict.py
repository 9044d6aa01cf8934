"""Every shape of certificate that the CA makes, before the strictest readers: openssl's, and Python's TLS."""

from __future__ import annotations

import itertools
import ssl
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from ca.attest import Attested
from ca.authority.authority import Authority, open_authority
from ca.authority.state import AuthorityState, IssuerState
from ca.certificate.build import self_signed_root
from ca.issuer import Issuer, Order, ReservedNames
from ca.profile import IssuanceProfile, Validity
from ca.registry import Grant
from istio_auth.keys import PrivateKey
from istio_auth.pem import write_certificates, write_private_key
from istio_auth.spiffe_id import SpiffeID, TrustDomain
from tests.fakes.authority import FakeAuthority
from tests.fakes.authority_store import MemoryAuthorityStore
from tests.fakes.clock import FakeClock
from tests.fakes.issuance_log import MemoryIssuanceLog

LOCAL = TrustDomain("cluster.local")
WEB = SpiffeID.for_service_account(LOCAL, "default", "web")
NOW = datetime.now(UTC).replace(microsecond=0)
YEAR = timedelta(days=365)
KINDS: dict[str, Callable[[], PrivateKey]] = {
    "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "RSA-2048": lambda: rsa.generate_private_key(65537, 2048),
}


@dataclass(frozen=True)
class Files:
    """A certificate on disk."""

    chain: Path
    key: Path
    root: Path


def self_signed(kind: str, now: datetime = NOW) -> Authority:
    key = KINDS[kind]()
    root = self_signed_root(LOCAL, key, Validity(now - YEAR, now + 9 * YEAR))
    return open_authority(
        MemoryAuthorityStore(AuthorityState(LOCAL, IssuerState(root, root, key=key))), LOCAL, FakeClock(now)
    )


def below_a_root(kind: str) -> Authority:
    root = FakeAuthority(now=NOW, lifetime=YEAR)
    issuer = FakeAuthority(parent=root, now=NOW, lifetime=YEAR, key=KINDS[kind](), path_length=0)
    state = IssuerState(issuer.certificate, root.certificate, key=issuer.key)
    return open_authority(MemoryAuthorityStore(AuthorityState(LOCAL, state)), LOCAL, FakeClock(NOW))


async def issued(authority: Authority, kind: str, folder: Path, *, now: datetime = NOW) -> Files:
    key = KINDS[kind]()
    issuer = Issuer(authority, IssuanceProfile(), MemoryIssuanceLog(), FakeClock(now), ReservedNames.of(LOCAL))
    attested = Attested(SpiffeID.for_agent(LOCAL, "node"), "certificate")
    svid = await issuer.issue(Order(Grant(WEB, dns_names=("web.default.svc",)), key.public_key(), None, attested, ""))
    await issuer.close()
    files = Files(folder / "chain.pem", folder / "key.pem", folder / "root.pem")
    files.chain.write_bytes(write_certificates(svid.certificates()))
    files.key.write_bytes(write_private_key(key))
    files.root.write_bytes(authority.root_pem())
    return files


def openssl_accepts(files: Files, *, root: Path | None = None, now: datetime = NOW, purpose: str = "sslserver") -> bool:
    when = str(int(now.timestamp()))
    command = ["openssl", "verify", "-x509_strict", "-attime", when, "-purpose", purpose]
    command += ["-CAfile", str(root or files.root), "-untrusted", str(files.chain), str(files.chain)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60).returncode == 0


@pytest.mark.parametrize("issuer", KINDS)
@pytest.mark.parametrize("leaf", KINDS)
@pytest.mark.parametrize("authority_of", [self_signed, below_a_root], ids=["root", "intermediate"])
async def test_openssl_and_python_accept_every_shape_strictly(
    tmp_path: Path, issuer: str, leaf: str, authority_of: Callable[[str], Authority]
) -> None:
    files = await issued(authority_of(issuer), leaf, tmp_path)
    assert openssl_accepts(files, purpose="sslserver")
    assert openssl_accepts(files, purpose="sslclient")
    meet(context(files, server_side=True), context(files, server_side=False))
    (tmp_path / "other.pem").write_bytes(self_signed("P-256").root_pem())
    assert not openssl_accepts(files, root=tmp_path / "other.pem")


async def test_openssl_accepts_certificates_of_the_second_half_of_the_century(tmp_path: Path) -> None:
    now = datetime(2049, 12, 31, 23, 59, tzinfo=UTC)  # begins in one form of instant and ends in the other
    files = await issued(self_signed("P-256", now), "P-256", tmp_path, now=now)
    assert openssl_accepts(files, now=now)
    assert not openssl_accepts(files, now=now + timedelta(days=2))


async def test_after_a_renewal_old_leaves_pass_under_the_new_root_and_new_leaves_under_the_old(tmp_path: Path) -> None:
    authority = self_signed("P-256")
    now = authority.not_after - YEAR
    (tmp_path / "before").mkdir()
    (tmp_path / "after").mkdir()
    before = await issued(authority, "P-256", tmp_path / "before", now=now)
    assert authority.renew_if_due(now)
    after = await issued(authority, "P-256", tmp_path / "after", now=now)
    new_root = tmp_path / "new.pem"
    new_root.write_bytes(write_certificates((authority.active.certificate,)))
    for files, root in itertools.product((before, after), (before.root, after.root, new_root)):
        assert openssl_accepts(files, root=root, now=now)


def context(files: Files, *, server_side: bool) -> ssl.SSLContext:
    """A TLS context of Python's own, as strict as it can be."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server_side else ssl.PROTOCOL_TLS_CLIENT)
    context.load_cert_chain(files.chain, files.key)
    context.load_verify_locations(files.root)
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    return context


def meet(server: ssl.SSLContext, client: ssl.SSLContext) -> None:
    """One handshake in memory, both sides looking at each other's certificate; the client at the name, too."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [
        client.wrap_bio(to_client, to_server, server_hostname="web.default.svc"),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    while sides:
        for side in list(sides):
            try:
                side.do_handshake()
                sides.remove(side)
            except ssl.SSLWantReadError:
                pass
