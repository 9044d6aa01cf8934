"""A chain proves a SPIFFE ID, or is refused for exactly what is wrong with it (X509-SVID 5)."""

from __future__ import annotations

import time
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from istio_auth.bundle import BundleSet, TrustBundle
from istio_auth.errors import Code, Fault, VerificationError
from istio_auth.keys import new_private_key
from istio_auth.verify import MAX_CHAIN, check_leaf, verify_chain
from tests.fakes.authority import HOUR, FakeAuthority
from tests.fakes.der import with_bytes
from tests.unit.test_keys import rsa_public_key
from tests.vectors.x509_svid import ALL, BUNDLES, FEDERATED, LOCAL, NOW, STRANGER, UNKNOWN, Vector, sound_intermediate

WEB = "spiffe://cluster.local/ns/default/sa/web"
SUBJECT = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "cluster.local")])


@pytest.mark.parametrize("vector", ALL.values(), ids=list(ALL))
def test_a_chain_with_one_fault_is_refused_for_it_and_passes_without(vector: Vector) -> None:
    with pytest.raises(VerificationError) as caught:
        verify_chain(vector.wrong, BUNDLES, NOW)
    assert caught.value.fault is vector.fault
    assert caught.value.code is Code.NOT_AUTHENTICATED
    assert caught.value.public == "certificate refused"
    verify_chain(vector.mended, BUNDLES, NOW)


def test_every_fault_has_a_vector() -> None:
    assert {vector.fault for vector in ALL.values()} == set(Fault)


def test_each_trust_domain_proves_its_own_names() -> None:
    assert str(verify_chain(LOCAL.chain(), BUNDLES, NOW)) == WEB
    assert str(verify_chain(FEDERATED.chain(), BUNDLES, NOW)) == "spiffe://partner.test/ns/default/sa/web"


def test_a_single_bundle_is_a_source_of_its_own_domain() -> None:
    assert str(verify_chain(LOCAL.chain(), LOCAL.bundle(), NOW)) == WEB
    with pytest.raises(VerificationError) as caught:
        verify_chain(FEDERATED.chain(), LOCAL.bundle(), NOW)
    assert caught.value.fault is Fault.FOREIGN_TRUST_DOMAIN


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_intermediates_lead_to_the_root_in_any_order_and_with_company(depth: int) -> None:
    issuer = LOCAL
    for _ in range(depth):
        issuer = FakeAuthority(parent=issuer, now=NOW)
    leaf, *intermediates = issuer.chain()
    for company in (intermediates, intermediates[::-1], [*intermediates, LOCAL.certificate, STRANGER.certificate]):
        assert str(verify_chain([leaf, *company], BUNDLES, NOW)) == WEB


def test_a_chain_is_looked_at_up_to_its_bound() -> None:
    leaf = LOCAL.chain()[0]
    verify_chain([leaf] * MAX_CHAIN, BUNDLES, NOW)
    with pytest.raises(VerificationError) as caught:
        verify_chain([leaf] * (MAX_CHAIN + 1), BUNDLES, NOW)
    assert caught.value.fault is Fault.TOO_LONG


def test_the_ends_of_a_life_belong_to_it() -> None:
    chain = LOCAL.chain(LOCAL.leaf(not_before=NOW - HOUR, not_after=NOW + HOUR))
    for edge, beyond, fault in (
        (NOW - HOUR, NOW - HOUR - timedelta(microseconds=1), Fault.NOT_YET_VALID),
        (NOW + HOUR, NOW + HOUR + timedelta(microseconds=1), Fault.EXPIRED),
    ):
        verify_chain(chain, BUNDLES, edge)
        with pytest.raises(VerificationError) as caught:
            verify_chain(chain, BUNDLES, beyond)
        assert caught.value.fault is fault


def test_a_root_that_has_ended_vouches_for_nobody() -> None:
    root = FakeAuthority(now=NOW, lifetime=timedelta(minutes=10))
    chain = root.chain()
    verify_chain(chain, root.bundle(), NOW)
    with pytest.raises(VerificationError) as caught:
        verify_chain(chain, root.bundle(), NOW + timedelta(minutes=11))
    assert caught.value.fault is Fault.UNTRUSTED


def test_an_empty_bundle_trusts_nobody() -> None:
    with pytest.raises(VerificationError) as caught:
        verify_chain(LOCAL.chain(), TrustBundle(LOCAL.trust_domain), NOW)
    assert caught.value.fault is Fault.UNTRUSTED


def test_a_leaf_in_the_bundle_does_not_vouch_for_itself() -> None:
    chain = STRANGER.chain()
    for authorities in ((LOCAL.certificate, chain[0]), chain):
        with pytest.raises(VerificationError) as caught:
            verify_chain(chain, TrustBundle(LOCAL.trust_domain, authorities), NOW)
        assert caught.value.fault is Fault.UNTRUSTED
    verify_chain(chain, TrustBundle(LOCAL.trust_domain, (chain[0], STRANGER.certificate)), NOW)


def test_both_roots_of_a_rotation_are_good() -> None:
    old, new = FakeAuthority(now=NOW), FakeAuthority(now=NOW)
    both = TrustBundle(old.trust_domain, (old.certificate, new.certificate))
    verify_chain(old.chain(), both, NOW)
    verify_chain(new.chain(), both, NOW)
    with pytest.raises(VerificationError):
        verify_chain(old.chain(), new.bundle(), NOW)


def test_an_intermediate_in_the_bundle_is_an_authority_like_any_other() -> None:
    between = sound_intermediate()
    verify_chain(between.chain()[:1], TrustBundle(LOCAL.trust_domain, (between.certificate,)), NOW)


def test_many_roots_with_one_name_are_told_apart_by_their_keys() -> None:
    roots = [FakeAuthority(now=NOW, name=SUBJECT) for _ in range(20)]
    bundle = TrustBundle(LOCAL.trust_domain, tuple(root.certificate for root in roots))
    for root in roots:
        verify_chain(root.chain(), bundle, NOW)


def test_names_need_not_be_critical_beside_a_subject() -> None:
    verify_chain(LOCAL.chain(LOCAL.leaf(subject=SUBJECT, san_critical=False)), BUNDLES, NOW)


def test_what_the_standard_leaves_open_passes() -> None:
    for changes in (
        {"uses": None},
        {"key_encipherment": True},
        {"dns_names": ["web.default.svc", "web"]},
        {"extra": [(UNKNOWN, False)]},
        {"subject": SUBJECT},
    ):
        assert str(verify_chain(LOCAL.chain(LOCAL.leaf(**changes)), BUNDLES, NOW)) == WEB


def test_a_leaf_without_basic_constraints_is_no_ca() -> None:
    leaf = LOCAL.leaf()
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(WEB)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(leaf.subject)
        .issuer_name(LOCAL.name)
        .public_key(new_private_key().public_key())
        .serial_number(1)
        .not_valid_before(leaf.not_before)
        .not_valid_after(leaf.not_after)
        .add_extension(names, critical=True)
        .add_extension(LOCAL.key_identifier(), critical=False)
        .add_extension(x509.KeyUsage(True, *[False] * 8), critical=True)
        .sign(LOCAL.key, hashes.SHA256())
    )
    assert str(verify_chain([certificate], BUNDLES, NOW)) == WEB


@pytest.mark.parametrize(
    "key", [rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP384R1())], ids=["rsa-2048", "p-384"]
)
def test_other_allowed_keys_prove_identities_and_issue_them(key: ec.EllipticCurvePrivateKey) -> None:
    root = FakeAuthority(now=NOW, key=key)
    verify_chain(root.chain(key=key), root.bundle(), NOW)


def test_a_certificate_with_an_enormous_key_costs_a_stranger_nothing() -> None:
    between = sound_intermediate()
    # It bears the issuer's name, so that it would be tried.
    huge = between.sign(between.leaf(ca=True, key_cert_sign=True, subject=between.name), rsa_public_key(16384))
    leaf, *rest = between.chain()
    began = time.thread_time()
    assert str(verify_chain([leaf, *[huge] * 8, *rest], BUNDLES, NOW)) == WEB
    assert time.thread_time() - began < 0.5


def test_issuers_that_sign_each_other_cost_little() -> None:
    first = FakeAuthority(now=NOW, name=SUBJECT)
    # One name and one key, many certificates: every one fits above every other.
    ring = [first.certificate, *(_again(first) for _ in range(MAX_CHAIN - 2))]
    began = time.thread_time()
    with pytest.raises(VerificationError) as caught:
        verify_chain([first.chain()[0], *ring], BUNDLES, NOW)
    assert caught.value.fault is Fault.UNTRUSTED
    assert time.thread_time() - began < 2


def test_a_key_that_nobody_knows_is_a_refusal_and_not_a_crash() -> None:
    leaf = LOCAL.chain()[0]
    for old, new in (("06082a8648ce3d030107", "06082a8648ce3d030117"), ("06072a8648ce3d0201", "06072a8648ce3d0209")):
        with pytest.raises(VerificationError) as caught:
            check_leaf(with_bytes(leaf, old, new))
        assert caught.value.fault is Fault.WEAK_KEY
        between = with_bytes(sound_intermediate().certificate, old, new)
        assert str(verify_chain([leaf, between], BUNDLES, NOW)) == WEB


def test_bundles_are_never_pooled() -> None:
    # The certificates of both domains are in the set; each vouches for its own names alone, in both directions.
    forged = FEDERATED.chain(FEDERATED.leaf(uris=[WEB]))
    pooled = TrustBundle(LOCAL.trust_domain, (LOCAL.certificate, FEDERATED.certificate))
    assert str(verify_chain(forged, pooled, NOW)) == WEB  # what pooling would do
    with pytest.raises(VerificationError) as caught:
        verify_chain(forged, BundleSet((LOCAL.bundle(), FEDERATED.bundle())), NOW)
    assert caught.value.fault is Fault.UNTRUSTED


def _again(root: FakeAuthority) -> x509.Certificate:
    """A further self-signed certificate of the same name and key."""
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    return (
        x509.CertificateBuilder()
        .subject_name(root.name)
        .issuer_name(root.name)
        .public_key(root.key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - HOUR)
        .not_valid_after(NOW + HOUR)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(root.key.public_key()), critical=False)
        .add_extension(usage, critical=True)
        .sign(root.key, hashes.SHA256())
    )
