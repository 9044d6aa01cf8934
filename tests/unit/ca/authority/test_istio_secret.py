"""The state in Istio's own secret: readable for Istio's CA, adopted from it, and never taken for nothing."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from ca.authority.authority import open_authority
from ca.authority.istio_secret import STATE, read_state, write_state
from ca.authority.state import AuthorityState, IssuerState, KeyReference
from istio_auth.errors import ConfigurationError
from istio_auth.keys import PrivateKey
from istio_auth.pem import read_certificates, read_private_key, write_certificates, write_private_key
from istio_auth.spiffe_id import TrustDomain
from tests.fakes.authority import FakeAuthority
from tests.fakes.authority_store import MemoryAuthorityStore
from tests.fakes.clock import FakeClock

LOCAL = TrustDomain("cluster.local")
NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)
ROOT, NEXT, OLD, OTHER = (FakeAuthority(now=NOW) for _ in range(4))
INTERMEDIATE = FakeAuthority(parent=ROOT, now=NOW)
RSA_KEY = rsa.generate_private_key(65537, 2048)
OWN = AuthorityState(
    LOCAL,
    IssuerState(ROOT.certificate, ROOT.certificate, other_roots=(OTHER.certificate,), key=ROOT.key),
    prepared=IssuerState(NEXT.certificate, NEXT.certificate, key=KeyReference("a plugged-in CA in memory")),
    retired=(IssuerState(OLD.certificate, OLD.certificate),),
    sequence=7,
    refresh_hint=timedelta(seconds=60),
    deadlines={"prepared signs": NOW},
    longest_ttl=90 * DAY,
)
PLUGGED = replace(
    OWN,
    active=IssuerState(INTERMEDIATE.certificate, ROOT.certificate, key=KeyReference("a plugged-in CA in memory")),
)


def istio_root(
    key: PrivateKey = RSA_KEY, *, begin: datetime = NOW, life: timedelta = 3650 * DAY, organization: str = "k8s"
) -> x509.Certificate:
    """A root as istiod makes it: an organization and nothing else, no key identifier, no SPIFFE ID."""
    name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization)])
    names = ["digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"]
    usage = dict.fromkeys((*names, "crl_sign", "encipher_only", "decipher_only"), False)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + life)
        .add_extension(x509.KeyUsage(key_cert_sign=True, **usage), critical=True)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )


def istio_secret(certificate: x509.Certificate, key: PrivateKey = RSA_KEY, **more: bytes) -> dict[str, bytes]:
    """The data as istiod writes it."""
    data = {
        "ca-cert.pem": write_certificates((certificate,)),
        "ca-key.pem": key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()),
        "root-cert.pem": write_certificates((certificate,)),
        "cert-chain.pem": b"",
        "key.pem": b"",
    }
    return data | {name.replace("_", "-") + ".pem": content for name, content in more.items()}


ISTIO_ROOT = istio_root()


def refused(data: dict[str, bytes], key: str) -> None:
    with pytest.raises(ConfigurationError, match=key) as caught:
        read_state(data, LOCAL)
    error: BaseException | None = caught.value
    while error is not None:
        assert "PRIVATE KEY" not in str(error)
        error = error.__cause__


@pytest.mark.parametrize("state", [OWN, PLUGGED, AuthorityState(LOCAL, OWN.active)])
def test_a_state_comes_back_as_it_was_written(state: AuthorityState) -> None:
    read = read_state(write_state(state), LOCAL)
    assert read == state
    assert read.to_json() == state.to_json()


def test_istio_finds_the_issuer_that_signs_under_its_own_keys() -> None:
    data = write_state(OWN)
    assert read_certificates(data["ca-cert.pem"]) == (ROOT.certificate,)
    assert read_private_key(data["ca-key.pem"]).private_numbers() == ROOT.key.private_numbers()
    assert data["cert-chain.pem"] == b""
    assert read_certificates(data["root-cert.pem"]) == (ROOT.certificate, OTHER.certificate)
    assert b"BEGIN PRIVATE KEY" not in b"".join(data.values())


@pytest.mark.parametrize(
    ("key", "label"), [(RSA_KEY, b"RSA PRIVATE KEY"), (ec.generate_private_key(ec.SECP256R1()), b"EC PRIVATE KEY")]
)
def test_the_key_is_written_in_the_form_that_every_release_of_istio_reads(key: PrivateKey, label: bytes) -> None:
    root = istio_root(key)
    data = write_state(AuthorityState(LOCAL, IssuerState(root, root, key=key)))
    assert data["ca-key.pem"].startswith(b"-----BEGIN " + label)


def test_the_key_of_a_plugged_in_ca_is_not_there_and_takes_away_the_one_before() -> None:
    merged = write_state(OWN) | {"theirs": b"of somebody else"} | write_state(PLUGGED)
    assert b"PRIVATE" not in b"".join(merged.values())
    assert read_state(merged, LOCAL) == PLUGGED
    assert read_certificates(merged["ca-cert.pem"]) == (INTERMEDIATE.certificate,)
    assert read_certificates(merged["cert-chain.pem"]) == (INTERMEDIATE.certificate,)


@pytest.mark.parametrize("without", [[], ["root-cert.pem"], ["root-cert.pem", "cert-chain.pem", "key.pem"]])
def test_a_secret_of_istiod_or_citadel_is_adopted(without: list[str]) -> None:
    data = {name: content for name, content in istio_secret(ISTIO_ROOT).items() if name not in without}
    state = read_state(data, LOCAL)
    assert state.active == IssuerState(ISTIO_ROOT, ISTIO_ROOT)
    assert isinstance(state.active.key, rsa.RSAPrivateKey)
    assert state.active.key.private_numbers() == RSA_KEY.private_numbers()
    assert (state.sequence, state.retired, state.trust_domain) == (1, (), LOCAL)
    assert state.to_json() == read_state(data, LOCAL).to_json()


@pytest.mark.parametrize("form", [PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL])
@pytest.mark.parametrize("key", [RSA_KEY, ec.generate_private_key(ec.SECP384R1())], ids=["RSA", "P-384"])
def test_every_usual_form_of_key_is_adopted(key: PrivateKey, form: PrivateFormat) -> None:
    pem = key.private_bytes(Encoding.PEM, form, NoEncryption())
    state = read_state(istio_secret(istio_root(key), key, ca_key=pem), LOCAL)
    assert state.active.key is not None
    assert read_state(write_state(state), LOCAL).to_json() == state.to_json()


def test_an_adopted_root_that_has_ended_can_still_be_renewed_with_its_key(clock: FakeClock) -> None:
    ended = istio_root(begin=NOW - 400 * DAY, life=365 * DAY)
    store = MemoryAuthorityStore(read_state(istio_secret(ended), LOCAL))
    authority = open_authority(store, LOCAL, clock)
    assert authority.renew_if_due(clock.now())
    assert authority.active.certificate.subject == ended.subject
    assert authority.not_after > clock.now()


def test_a_root_that_istiod_renewed_before_leaves_the_older_one_in_the_bundle_until_its_end() -> None:
    renewed = istio_root(begin=NOW + 300 * DAY)
    state = read_state(istio_secret(renewed, root_cert=write_certificates((ISTIO_ROOT,))), LOCAL)
    assert state.active.certificate == renewed
    assert set(state.bundle().x509_authorities) == {ISTIO_ROOT, renewed}
    assert [old.root for old in state.retired] == [ISTIO_ROOT]


def test_an_adopted_issuer_below_a_root_finds_its_way_there() -> None:
    upper = FakeAuthority(parent=ROOT, now=NOW)
    issuer = FakeAuthority(parent=upper, now=NOW)
    data = istio_secret(
        issuer.certificate,
        issuer.key,
        cert_chain=write_certificates(issuer.intermediates),
        root_cert=write_certificates((OTHER.certificate, ROOT.certificate)),
    )
    state = read_state(data, LOCAL)
    assert (state.active.root, state.active.intermediates) == (ROOT.certificate, (upper.certificate,))
    assert state.active.other_roots == (OTHER.certificate,)


def renewed_by_istiod(data: dict[str, bytes], certificate: x509.Certificate, key: PrivateKey) -> dict[str, bytes]:
    """What istiod's rotator changes: certificate and key, and nothing else."""
    mine = istio_secret(certificate, key)
    return data | {name: mine[name] for name in ("ca-cert.pem", "ca-key.pem")}


def test_a_root_that_istiod_renewed_beside_us_signs_and_the_old_one_stays() -> None:
    before = AuthorityState(LOCAL, IssuerState(ISTIO_ROOT, ISTIO_ROOT, (), (OTHER.certificate,), RSA_KEY), sequence=4)
    renewed = istio_root(begin=NOW + 3000 * DAY)
    data = renewed_by_istiod(write_state(before), renewed, RSA_KEY)
    state = read_state(data, LOCAL)
    assert state.active.certificate == renewed
    assert isinstance(state.active.key, rsa.RSAPrivateKey)
    assert set(state.bundle().x509_authorities) == {ISTIO_ROOT, renewed, OTHER.certificate}
    assert [(old.certificate, old.key) for old in state.retired] == [(ISTIO_ROOT, None)]
    assert state.sequence == 5
    assert read_state(data, LOCAL).to_json() == state.to_json()
    assert read_state(write_state(state), LOCAL) == state


def test_a_root_that_had_ended_before_istiod_renewed_it_does_not_stay() -> None:
    before = AuthorityState(LOCAL, IssuerState(ISTIO_ROOT, ISTIO_ROOT, key=RSA_KEY))
    late = istio_root(begin=NOW + 3650 * DAY)
    state = read_state(renewed_by_istiod(write_state(before), late, RSA_KEY), LOCAL)
    assert state.bundle().x509_authorities == (late,)
    assert state.sequence == 2


def test_what_else_is_remembered_stays_when_istiod_renews() -> None:
    renewed = FakeAuthority(now=NOW, key=ROOT.key, name=ROOT.name)
    state = read_state(renewed_by_istiod(write_state(OWN), renewed.certificate, ROOT.key), LOCAL)
    assert (state.prepared, state.deadlines, state.longest_ttl) == (OWN.prepared, OWN.deadlines, OWN.longest_ttl)
    assert state.refresh_hint == OWN.refresh_hint
    assert [old.root for old in state.retired] == [ROOT.certificate, OLD.certificate]


@pytest.mark.parametrize("name", ["ca-cert.pem", "ca-key.pem"])
@pytest.mark.parametrize("content", [None, b"", b"\0garbage", b"truncated"])
@pytest.mark.parametrize("ours", [True, False], ids=["with our state", "of istiod"])
def test_what_is_missing_or_damaged_is_refused_by_its_key(name: str, content: bytes | None, *, ours: bool) -> None:
    data = write_state(OWN) if ours else istio_secret(ISTIO_ROOT)
    if content is None:
        del data[name]
    else:
        data[name] = data[name][:-40] if content == b"truncated" else content
    refused(data, name)


@pytest.mark.parametrize("name", ["cert-chain.pem", "root-cert.pem"])
def test_a_damaged_root_or_chain_of_an_adopted_issuer_is_refused_by_its_key(name: str) -> None:
    data = istio_secret(
        INTERMEDIATE.certificate,
        INTERMEDIATE.key,
        cert_chain=write_certificates(INTERMEDIATE.intermediates),
        root_cert=write_certificates((ROOT.certificate,)),
    )
    read_state(data, LOCAL)
    refused(data | {name: b"garbage"}, name)


def test_an_empty_secret_is_damaged_and_not_nothing() -> None:
    refused({}, "ca-cert.pem")


def test_the_key_of_another_certificate_is_refused() -> None:
    refused(istio_secret(ISTIO_ROOT, ca_key=write_private_key(OTHER.key)), "ca-key.pem")
    refused(write_state(OWN) | {"ca-key.pem": write_private_key(OTHER.key)}, "ca-key.pem")


def test_a_certificate_that_is_no_cas_is_not_adopted() -> None:
    leaf = FakeAuthority(now=NOW, ca=False)
    refused(istio_secret(leaf.certificate, leaf.key), "ca-cert.pem.*basicConstraints")


def test_an_issuer_without_its_root_is_not_adopted() -> None:
    refused(istio_secret(INTERMEDIATE.certificate, INTERMEDIATE.key, root_cert=b""), "ca-cert.pem.*chain")


def test_the_root_of_another_trust_domain_is_not_adopted() -> None:
    foreign = FakeAuthority("foreign.test", now=NOW)
    refused(istio_secret(foreign.certificate, foreign.key), r"ca-cert.pem.*foreign\.test")


def test_the_state_of_another_trust_domain_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=f"{STATE}.*cluster.local"):
        read_state(write_state(OWN), TrustDomain("foreign.test"))


@pytest.mark.parametrize("content", [b"", b"garbage", b"{}", OWN.to_json()[:-50]])
def test_a_damaged_state_is_refused_though_istios_keys_are_good(content: bytes) -> None:
    refused(write_state(OWN) | {STATE: content}, STATE)


def test_a_state_that_holds_the_key_of_the_issuer_itself_is_refused() -> None:
    refused(write_state(OWN) | {STATE: OWN.to_json()}, STATE)


def test_an_issuer_that_somebody_puts_beside_a_plugged_in_one_is_refused() -> None:
    refused(renewed_by_istiod(write_state(PLUGGED), ISTIO_ROOT, RSA_KEY), "ca-key.pem")
    refused(write_state(PLUGGED) | {"ca-cert.pem": write_certificates((ISTIO_ROOT,))}, "ca-cert.pem")


def test_a_state_whose_issuer_has_no_key_is_not_written() -> None:
    with pytest.raises(ConfigurationError):
        write_state(replace(OWN, active=replace(OWN.active, key=None)))
