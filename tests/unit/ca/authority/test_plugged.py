"""A CA that somebody else made: taken as Istio lays it out, and only if it will work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from ca.authority.authority import open_authority
from ca.authority.issuer_source import IssuerFolder
from ca.authority.plugged import PluggedAuthority, open_plugged_authority, read_plugged
from ca.authority.state import KeyReference
from istio_auth.errors import ConfigurationError
from istio_auth.keys import PrivateKey
from istio_auth.pem import write_certificates, write_private_key
from istio_auth.spiffe_id import TrustDomain
from tests.fakes.authority import FakeAuthority
from tests.fakes.authority_store import MemoryAuthorityStore
from tests.fakes.clock import FakeClock

LOCAL = TrustDomain("cluster.local")
CLOCK = FakeClock()
NOW = CLOCK.now()
DAY = timedelta(days=1)
ROOT = FakeAuthority(now=NOW, lifetime=3650 * DAY)
MIDDLE = FakeAuthority(parent=ROOT, now=NOW, lifetime=1000 * DAY)
ISSUER = FakeAuthority(parent=MIDDLE, now=NOW, lifetime=100 * DAY)
CACERTS_FILES = ["ca-cert.pem", "ca-key.pem", "cert-chain.pem", "root-cert.pem"]
TLS_FILES = ["tls.crt", "tls.key", "ca.crt"]


def cacerts(
    folder: Path,
    issuer: FakeAuthority = ISSUER,
    *,
    key: PrivateKey | None = None,
    chain: Sequence[x509.Certificate] | None = None,
    roots: Sequence[x509.Certificate] | None = None,
) -> Path:
    """A `cacerts` folder; every part can be replaced."""
    files = {
        "ca-cert.pem": write_certificates((issuer.certificate,)),
        "ca-key.pem": write_private_key(key or issuer.key),
        "cert-chain.pem": write_certificates(issuer.intermediates if chain is None else chain),
        "root-cert.pem": write_certificates((issuer.root,) if roots is None else roots),
    }
    return written(folder, files)


def tls(folder: Path, issuer: FakeAuthority = ISSUER) -> Path:
    """The folder of a `kubernetes.io/tls` secret."""
    files = {
        "tls.crt": write_certificates(issuer.intermediates),
        "tls.key": write_private_key(issuer.key),
        "ca.crt": write_certificates((issuer.root,)),
    }
    return written(folder, files)


def written(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
        (folder / name).chmod(0o600)
    return folder


def opened(folder: Path, store: MemoryAuthorityStore | None = None) -> PluggedAuthority:
    return open_plugged_authority(folder, store or MemoryAuthorityStore(), LOCAL, CLOCK, longest_ttl=DAY)


def refused(folder: Path, match: str = "") -> None:
    with pytest.raises(ConfigurationError, match=match) as caught:
        opened(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("layout", [cacerts, tls], ids=["cacerts", "tls"])
def test_both_layouts_are_taken(tmp_path: Path, layout: Callable[[Path], Path]) -> None:
    authority = opened(layout(tmp_path))
    assert authority.active.certificate == ISSUER.certificate
    assert authority.chain == (ISSUER.certificate, MIDDLE.certificate)
    assert authority.bundle.x509_authorities == (ROOT.certificate,)
    assert authority.not_after == ISSUER.certificate.not_valid_after_utc
    assert authority.active.key.public_key() == ISSUER.key.public_key()


@pytest.mark.parametrize(
    "chain",
    [
        [MIDDLE.certificate],
        [ISSUER.certificate, MIDDLE.certificate, ROOT.certificate],
        [ROOT.certificate, MIDDLE.certificate, ISSUER.certificate],
        [MIDDLE.certificate, MIDDLE.certificate, FakeAuthority(now=NOW).certificate],
    ],
    ids=["without itself", "with itself and the root", "in another order", "twice and with a stranger"],
)
def test_the_chain_file_may_hold_more_or_less_in_any_order(tmp_path: Path, chain: list[x509.Certificate]) -> None:
    assert opened(cacerts(tmp_path, chain=chain)).chain == (ISSUER.certificate, MIDDLE.certificate)


def test_an_issuer_directly_below_the_root_may_have_an_empty_chain_file(tmp_path: Path) -> None:
    assert opened(cacerts(tmp_path, MIDDLE, chain=[])).chain == (MIDDLE.certificate,)


def test_a_root_that_issues_by_itself_is_taken(tmp_path: Path) -> None:
    authority = opened(cacerts(tmp_path, ROOT, chain=[]))
    assert authority.chain == ()
    assert authority.active.above == ()


def test_a_root_file_with_several_roots_is_the_bundle(tmp_path: Path) -> None:
    other = FakeAuthority(now=NOW)
    authority = opened(cacerts(tmp_path, roots=[other.certificate, ROOT.certificate]))
    assert set(authority.bundle.x509_authorities) == {ROOT.certificate, other.certificate}
    assert authority.active.above == (MIDDLE.certificate, ROOT.certificate)


def test_of_two_roots_of_one_key_the_one_that_lasts_longer_counts(tmp_path: Path) -> None:
    short = FakeAuthority(now=NOW, key=ROOT.key, lifetime=DAY)
    short.certificate = renamed(short.certificate, ROOT)
    authority = opened(cacerts(tmp_path, roots=[short.certificate, ROOT.certificate]))
    assert authority.not_after == ISSUER.certificate.not_valid_after_utc


@pytest.mark.parametrize("key_form", ["pkcs8", "traditional"])
@pytest.mark.parametrize("kind", ["P-256", "P-384", "RSA"])
def test_every_usual_form_of_key_is_taken(tmp_path: Path, kind: str, key_form: str) -> None:
    keys: dict[str, Callable[[], PrivateKey]] = {
        "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
        "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
        "RSA": lambda: rsa.generate_private_key(65537, 2048),
    }
    issuer = FakeAuthority(parent=ROOT, now=NOW, key=keys[kind]())
    form = PrivateFormat.PKCS8 if key_form == "pkcs8" else PrivateFormat.TraditionalOpenSSL
    cacerts(tmp_path, issuer)
    (tmp_path / "ca-key.pem").write_bytes(issuer.key.private_bytes(Encoding.PEM, form, NoEncryption()))
    assert opened(tmp_path).active.key.public_key() == issuer.key.public_key()


def test_no_files_are_no_layout_and_no_authority(tmp_path: Path) -> None:
    assert IssuerFolder(tmp_path).layout() is None
    assert IssuerFolder(tmp_path / "away").layout() is None
    refused(tmp_path, "ca-cert.pem")


@pytest.mark.parametrize("missing", CACERTS_FILES)
def test_an_incomplete_cacerts_folder_is_refused_by_the_names_of_what_is_missing(tmp_path: Path, missing: str) -> None:
    (cacerts(tmp_path) / missing).unlink()
    refused(tmp_path, missing)


@pytest.mark.parametrize("missing", TLS_FILES)
def test_an_incomplete_tls_folder_is_refused_by_the_names_of_what_is_missing(tmp_path: Path, missing: str) -> None:
    (tls(tmp_path) / missing).unlink()
    refused(tmp_path, missing)


def test_a_tls_certificate_selects_its_layout(tmp_path: Path) -> None:
    cacerts(tmp_path, ROOT, chain=[])
    assert opened(tls(tmp_path)).active.certificate == ISSUER.certificate


@pytest.mark.parametrize("name", CACERTS_FILES)
@pytest.mark.parametrize("damage", ["garbage", "truncated"])
def test_a_damaged_file_is_refused_by_its_name(tmp_path: Path, name: str, damage: str) -> None:
    path = cacerts(tmp_path) / name
    path.write_bytes(b"\0garbage" if damage == "garbage" else path.read_bytes()[:-40])
    refused(tmp_path, name)


def test_another_key_is_refused(tmp_path: Path) -> None:
    refused(cacerts(tmp_path, key=MIDDLE.key), "ca-key.pem")


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o602, 0o601])
def test_a_key_open_to_everybody_is_refused_with_the_command_that_mends_it(tmp_path: Path, mode: int) -> None:
    key = cacerts(tmp_path) / "ca-key.pem"
    key.chmod(mode)
    refused(tmp_path, f"chmod o= {key}")
    key.chmod(0o640)  # as Kubernetes mounts a secret for a group
    opened(tmp_path)


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (FakeAuthority(parent=ROOT, now=NOW, ca=False, key_cert_sign=False), "basicConstraints"),
        (FakeAuthority(parent=ROOT, now=NOW, key_cert_sign=False), "keyUsage"),
        (FakeAuthority(parent=ROOT, now=NOW, usage_present=False), "keyUsage"),
        (FakeAuthority(parent=ROOT, now=NOW, lifetime=timedelta(seconds=-1)), "valid from"),
        (FakeAuthority(parent=ROOT, now=NOW + 2 * DAY), "valid from"),
        (FakeAuthority(parent=FakeAuthority(parent=ROOT, now=NOW, path_length=0), now=NOW), "pathLen"),
        (FakeAuthority(parent=FakeAuthority(now=NOW, lifetime=-DAY / 100), now=NOW), "valid from"),
        (FakeAuthority("foreign.test", parent=ROOT, now=NOW), "foreign.test"),
    ],
    ids=["no CA", "may not sign", "no key usage", "ended", "not begun", "chain too long", "root ended", "foreign"],
)
def test_a_certificate_that_could_not_issue_is_refused(tmp_path: Path, wrong: FakeAuthority, why: str) -> None:
    refused(cacerts(tmp_path, wrong), why)
    opened(cacerts(tmp_path, FakeAuthority(parent=ROOT, now=NOW, path_length=0)))


def test_a_weak_key_is_refused(tmp_path: Path) -> None:
    bits = 1024
    weak = FakeAuthority(parent=ROOT, now=NOW, key=rsa.generate_private_key(65537, bits))
    refused(cacerts(tmp_path, weak), "1024")


def test_a_certificate_that_does_not_chain_to_the_root_is_refused(tmp_path: Path) -> None:
    refused(cacerts(tmp_path, roots=[FakeAuthority(now=NOW).certificate]), "chain")
    refused(cacerts(tmp_path, chain=[]), "chain")
    impostor = FakeAuthority(now=NOW)
    refused(cacerts(tmp_path, roots=[renamed(impostor.certificate, ROOT, impostor)]), "chain")
    opened(cacerts(tmp_path))


def test_a_ca_without_spiffe_id_is_taken_as_istiod_makes_such(tmp_path: Path) -> None:
    plain = FakeAuthority(now=NOW)
    plain.certificate = renamed(plain.certificate, plain, plain, without=x509.SubjectAlternativeName.oid)
    assert opened(cacerts(tmp_path, plain)).trust_domain == LOCAL


def test_the_key_stays_in_its_file(tmp_path: Path) -> None:
    store = MemoryAuthorityStore()
    authority = opened(cacerts(tmp_path), store)
    assert b"PRIVATE" not in (store.content or b"")
    assert isinstance(authority.state.active.key, KeyReference)


def test_a_plugged_in_ca_is_not_ours_to_renew(tmp_path: Path) -> None:
    authority = opened(cacerts(tmp_path))
    now = authority.not_after - DAY
    assert not authority.renew_if_due(now)
    assert authority.warnings(now) != ()


def test_the_sequence_grows_with_the_roots_and_only_with_them(tmp_path: Path) -> None:
    store = MemoryAuthorityStore()
    assert opened(cacerts(tmp_path), store).bundle.sequence == 1
    assert opened(cacerts(tmp_path), store).bundle.sequence == 1
    assert store.writes == 1
    assert opened(cacerts(tmp_path, MIDDLE), store).bundle.sequence == 1
    other = FakeAuthority(now=NOW)
    assert opened(cacerts(tmp_path, roots=[ROOT.certificate, other.certificate]), store).bundle.sequence == 2
    assert opened(cacerts(tmp_path), store).bundle.sequence == 3


def test_our_own_root_stays_in_the_bundle_when_a_ca_is_plugged_in(tmp_path: Path) -> None:
    store = MemoryAuthorityStore()
    own = open_authority(store, LOCAL, CLOCK).active.certificate
    authority = opened(cacerts(tmp_path), store)
    assert set(authority.bundle.x509_authorities) == {own, ROOT.certificate}
    assert authority.bundle.sequence == 2
    assert opened(tmp_path, store).bundle == authority.bundle


def test_a_start_under_a_root_that_nobody_has_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store, other = MemoryAuthorityStore(), FakeAuthority(now=NOW)
    both = [ROOT.root, other.root]
    opened(cacerts(tmp_path), store)
    opened(cacerts(tmp_path, roots=both), store)
    opened(cacerts(tmp_path, other, chain=[], roots=both), store)
    assert not caplog.records
    opened(cacerts(tmp_path, FakeAuthority(now=NOW), chain=[]), store)
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_the_store_of_another_trust_domain_is_refused(tmp_path: Path) -> None:
    store = MemoryAuthorityStore()
    open_authority(store, TrustDomain("foreign.test"), CLOCK)
    with pytest.raises(ConfigurationError, match=r"foreign\.test"):
        opened(cacerts(tmp_path), store)


def test_following_the_files_takes_a_new_issuer_below_a_known_root(tmp_path: Path) -> None:
    authority = opened(cacerts(tmp_path))
    heard: list[x509.Certificate] = []
    authority.subscribe(lambda: heard.append(authority.active.certificate))
    assert not authority.follow(NOW)
    cacerts(tmp_path, MIDDLE)
    assert authority.follow(NOW)
    assert heard == [MIDDLE.certificate]
    assert authority.active.key.public_key() == MIDDLE.key.public_key()


def test_following_the_files_takes_a_new_root_in_two_steps_only(tmp_path: Path) -> None:
    authority = opened(cacerts(tmp_path))
    new = FakeAuthority(now=NOW)
    cacerts(tmp_path, new)
    with pytest.raises(ConfigurationError, match="nobody has yet"):
        authority.follow(NOW)
    assert authority.active.certificate == ISSUER.certificate
    cacerts(tmp_path, roots=[ROOT.certificate, new.certificate])
    assert authority.follow(NOW)
    cacerts(tmp_path, new, roots=[ROOT.certificate, new.certificate])
    assert authority.follow(NOW)
    assert authority.active.certificate == new.certificate
    assert authority.bundle.sequence == 2


def test_the_root_before_stays_in_the_bundle_until_what_was_issued_below_it_has_ended(tmp_path: Path) -> None:
    authority = opened(cacerts(tmp_path))
    new = FakeAuthority(now=NOW, lifetime=3650 * DAY)
    cacerts(tmp_path, roots=[ROOT.certificate, new.certificate])
    authority.follow(NOW)
    cacerts(tmp_path, new, chain=[])
    authority.follow(NOW)
    assert authority.active.certificate == new.certificate
    assert set(authority.bundle.x509_authorities) == {ROOT.certificate, new.certificate}
    assert not authority.renew_if_due(NOW + DAY)
    assert authority.renew_if_due(NOW + DAY + timedelta(hours=1))
    assert authority.bundle.x509_authorities == (new.certificate,)
    assert opened(tmp_path).bundle.x509_authorities == (new.certificate,)


def test_following_damaged_files_keeps_the_old_issuer(tmp_path: Path) -> None:
    authority = opened(cacerts(tmp_path))
    (tmp_path / "ca-cert.pem").write_bytes(b"half a")
    with pytest.raises(ConfigurationError):
        authority.follow(NOW)
    assert authority.active.certificate == ISSUER.certificate


def test_no_key_is_printed(tmp_path: Path) -> None:
    state = read_plugged(cacerts(tmp_path), LOCAL, NOW)
    assert "PRIVATE" not in repr(state)
    assert "PrivateKey" not in repr(state)


def renamed(
    certificate: x509.Certificate,
    name_of: FakeAuthority,
    signer: FakeAuthority | None = None,
    *,
    without: x509.ObjectIdentifier | None = None,
) -> x509.Certificate:
    """A self-signed certificate with the name of another, or without one of its extensions."""
    builder = (
        x509.CertificateBuilder()
        .subject_name(name_of.name)
        .issuer_name(name_of.name)
        .public_key(certificate.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(certificate.not_valid_before_utc)
        .not_valid_after(certificate.not_valid_after_utc)
    )
    for extension in certificate.extensions:
        if extension.oid != without:
            builder = builder.add_extension(extension.value, critical=extension.critical)
    return builder.sign((signer or name_of).key, hashes.SHA256())
