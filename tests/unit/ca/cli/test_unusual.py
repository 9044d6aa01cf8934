"""Every rule that a certificate breaks is told, and a sound one is told to be sound."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from ca.cli.unusual import bundle_findings, certificate_findings, chain_findings, csr_findings
from istio_auth.bundle import TrustBundle
from istio_auth.keys import new_private_key
from tests.fakes.authority import FakeAuthority
from tests.fakes.der import sha1_signed, with_bytes
from tests.unit.test_keys import rsa_public_key
from tests.vectors.x509_svid import LOCAL, NOW, STRANGER, UNKNOWN, sound_intermediate

KEY = new_private_key()
SKI = (x509.SubjectKeyIdentifier.from_public_key(KEY.public_key()), False)
WEB = "spiffe://cluster.local/ns/default/sa/web"
YEAR = timedelta(days=365)


def codes(certificate: x509.Certificate, now: datetime = NOW) -> set[str]:
    return {finding.code for finding in certificate_findings(certificate, now)}


def leaf_codes(key: object = None, **changes: object) -> set[str]:
    leaf = replace(LOCAL.leaf(), **({"extra": [SKI]} | changes))  # type: ignore[arg-type]  # the fields of Leaf
    return codes(LOCAL.sign(leaf, key or KEY.public_key()))  # type: ignore[arg-type]  # also kinds that we refuse


def test_nothing_is_unusual_about_a_sound_leaf() -> None:
    assert leaf_codes() == set()
    assert leaf_codes(rsa_public_key(2048), key_encipherment=True) == set()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"uris": []}, {"no-uri-name"}),
        ({"uris": [], "dns_names": ["web"]}, {"no-uri-name"}),
        ({"uris": [WEB, WEB]}, {"several-uri-names"}),
        ({"uris": ["https://web"]}, {"bad-spiffe-id"}),
        ({"uris": ["spiffe://TD/web"]}, {"bad-spiffe-id"}),
        ({"uris": ["spiffe://cluster.local"]}, {"id-without-path"}),
        ({"san_critical": False}, {"names-not-critical"}),
        ({"usage_present": False}, {"no-key-usage"}),
        ({"usage_critical": False}, {"key-usage-not-critical"}),
        ({"digital_signature": False, "crl_sign": True}, {"no-digital-signature", "leaf-signs"}),
        ({"key_cert_sign": True}, {"leaf-signs"}),
        ({"key_encipherment": True}, {"encipherment-without-rsa"}),
        ({"uses": None}, {"no-extended-key-usage"}),
        ({"uses": [ExtendedKeyUsageOID.CLIENT_AUTH]}, {"extended-key-usage"}),
        ({"dns_names": ["*.web"]}, {"wildcard"}),
        ({"extra": []}, {"no-subject-key-id"}),
        ({"extra": [SKI, (UNKNOWN, True)]}, {"unknown-critical-extension"}),
        ({"extra": [SKI, (UNKNOWN, False)]}, set()),
        ({"not_after": NOW + YEAR}, {"long-life"}),
        ({"not_after": NOW - timedelta(minutes=1)}, {"expired"}),
        ({"not_before": NOW + timedelta(minutes=1)}, {"not-yet-valid"}),
        ({"not_before": NOW - timedelta(hours=9)}, {"ends-soon"}),
        ({"uris": [WEB, WEB], "usage_critical": False, "uses": None, "san_critical": False},
         {"several-uri-names", "key-usage-not-critical", "no-extended-key-usage", "names-not-critical"}),
    ],
)  # fmt: skip
def test_each_rule_that_a_leaf_breaks_is_told(changes: dict[str, object], expected: set[str]) -> None:
    assert leaf_codes(**changes) == expected


@pytest.mark.parametrize(
    "key",
    [
        rsa_public_key(1024),
        rsa_public_key(16384),
        ec.generate_private_key(ec.SECP224R1()).public_key(),
        ed25519.Ed25519PrivateKey.generate().public_key(),
    ],
    ids=["rsa-1024", "rsa-16384", "p-224", "ed25519"],
)
def test_a_key_that_is_not_allowed_is_told(key: object) -> None:
    assert leaf_codes(key) == {"weak-key"}


def test_a_key_of_unknown_kind_is_told_and_no_crash() -> None:
    leaf = LOCAL.sign(LOCAL.leaf(), KEY.public_key())
    odd = with_bytes(leaf, "06072a8648ce3d0201", "06072a8648ce3d0209")
    assert "weak-key" in codes(odd)


def test_a_weak_signature_is_told() -> None:
    leaf = LOCAL.sign(LOCAL.leaf(), KEY.public_key())
    assert isinstance(LOCAL.key, ec.EllipticCurvePrivateKey)
    assert codes(sha1_signed(leaf, LOCAL.key)) - codes(leaf) == {"weak-signature"}


def test_a_short_serial_number_is_told() -> None:
    assert codes(LOCAL.sign(replace(LOCAL.leaf(), extra=[SKI]), KEY.public_key(), serial=5)) == {"short-serial"}


def test_extensions_that_can_not_be_read_are_told_and_nothing_else_is_guessed() -> None:
    leaf = LOCAL.sign(LOCAL.leaf(dns_names=["web"]), KEY.public_key())
    assert codes(with_bytes(leaf, "8203776562", "8303776562")) == {"unreadable-extensions"}


def test_nothing_is_unusual_about_a_sound_authority() -> None:
    assert codes(LOCAL.certificate) == set()
    assert codes(sound_intermediate().certificate) == set()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"key_cert_sign": False}, {"ca-can-not-sign", "ca-with-leaf-usage"}),
        ({"usage_present": False}, {"ca-can-not-sign"}),
        ({"extra": [(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)]}, {"ca-with-extended-usage"}),
        ({"extra": [(x509.NameConstraints([x509.DNSName("a.test")], None), True)]}, {"name-constraints"}),
        ({"lifetime": timedelta(seconds=-1)}, {"expired"}),
        ({"key": rsa.generate_private_key(65537, 1024)}, {"weak-key"}),  # noqa: S505  # the point of the test
    ],
    ids=["no-key-cert-sign", "no-usage", "extended", "constraints", "expired", "weak"],
)
def test_each_rule_that_an_authority_breaks_is_told(changes: dict[str, object], expected: set[str]) -> None:
    assert codes(FakeAuthority(now=NOW, **changes).certificate) == expected  # type: ignore[arg-type]  # by name


def test_an_authority_that_ends_soon_is_told_in_time() -> None:
    root = FakeAuthority(now=NOW, lifetime=10 * YEAR).certificate
    assert codes(root, NOW + 10 * YEAR - timedelta(days=31)) == set()
    assert codes(root, NOW + 10 * YEAR - timedelta(days=29)) == {"ends-soon"}


def test_the_order_of_a_chain_is_told() -> None:
    lower = FakeAuthority(parent=sound_intermediate(), now=NOW)
    leaf, one, two = lower.chain()

    def found(*chain: x509.Certificate) -> set[str]:
        return {finding.code for finding in chain_findings(chain)}

    assert found(leaf, one, two) == set()
    assert found(leaf) == set()
    assert found(leaf, two, one) == {"chain-order"}
    assert found(leaf, two) == {"chain-order"}
    assert found(leaf, one, two, LOCAL.certificate) == {"root-in-chain"}
    assert found(leaf, one, two, leaf) == {"chain-order", "leaf-among-issuers"}
    assert found(leaf, STRANGER.certificate) == {"chain-order", "root-in-chain"}


def test_a_leaf_that_outlives_its_issuer_is_told() -> None:
    short = sound_intermediate(lifetime=timedelta(minutes=10))
    assert {finding.code for finding in chain_findings(short.chain())} == {"outlives-issuer"}


def test_a_chain_over_two_trust_domains_is_told(foreign_authority: FakeAuthority) -> None:
    mixed = foreign_authority.chain(replace(foreign_authority.leaf(), uris=[WEB]))
    assert {finding.code for finding in chain_findings([*mixed, foreign_authority.certificate])} == {
        "several-trust-domains",
        "root-in-chain",
    }


def test_what_is_odd_about_a_bundle_is_told() -> None:
    def found(bundle: TrustBundle, *, with_sequence: bool = False) -> set[str]:
        return {finding.code for finding in bundle_findings(bundle, with_sequence=with_sequence)}

    td = LOCAL.trust_domain
    twin = FakeAuthority(now=NOW, name=LOCAL.name)
    whole = TrustBundle(td, (LOCAL.certificate,), 1, timedelta(minutes=5))
    assert found(whole, with_sequence=True) == set()
    assert found(LOCAL.bundle(sequence=None)) == set()
    assert found(LOCAL.bundle(sequence=None), with_sequence=True) == {"no-sequence", "no-refresh-hint"}
    assert found(TrustBundle(td)) == {"empty-bundle"}
    assert found(TrustBundle(td, (LOCAL.certificate, twin.certificate))) == {"same-subject"}
    assert found(TrustBundle(td, LOCAL.chain())) == {"no-ca"}
    assert found(TrustBundle(td, (sound_intermediate().certificate,))) == {"not-self-signed"}


def request(
    *uris: str, ca: bool = False, key: ec.EllipticCurvePrivateKey | None = None
) -> x509.CertificateSigningRequest:
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris or (WEB,)])
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).add_extension(names, critical=True)
    if ca:
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    return builder.sign(key or new_private_key(), hashes.SHA256())


def test_what_is_odd_about_a_request_is_told() -> None:
    def found(csr: x509.CertificateSigningRequest) -> set[str]:
        return {finding.code for finding in csr_findings(csr)}

    assert found(request()) == set()
    assert found(request(WEB, WEB)) == {"several-uri-names"}
    assert found(request("https://web")) == {"bad-spiffe-id"}
    assert found(request(ca=True)) == {"asks-for-ca"}
    assert found(request(key=ec.generate_private_key(ec.SECP224R1()))) == {"weak-key"}
    der = request().public_bytes(Encoding.DER)
    forged = der.replace(b"/sa/web", b"/sa/bew")
    assert found(x509.load_der_x509_csr(forged)) == {"bad-signature"}
