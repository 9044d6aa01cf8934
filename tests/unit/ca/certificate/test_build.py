"""What a leaf and a root look like, as cryptography's parser sees them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ca.certificate.build import Leaf, LeafTemplate, Names, key_identifier, new_serial, self_signed_root
from ca.profile import Validity
from istio_auth.keys import PrivateKey, public_key_der, sign
from istio_auth.spiffe_id import SpiffeID, TrustDomain
from istio_auth.verify import check_leaf
from tests.fakes.authority import FakeAuthority

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
WEB = SpiffeID.parse("spiffe://cluster.local/ns/default/sa/web")
LOCAL = TrustDomain("cluster.local")
P256, P384 = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP384R1())
RSA_2048 = rsa.generate_private_key(65537, 2048)
ISSUER = FakeAuthority(now=NOW)


def issued(key: PrivateKey = P256, **changes: object) -> x509.Certificate:
    names = changes.pop("names", Names(WEB))
    validity = changes.pop("validity", Validity(NOW, NOW + HOUR))
    issuer = changes.pop("issuer", ISSUER)
    assert isinstance(names, Names)
    assert isinstance(validity, Validity)
    assert isinstance(issuer, FakeAuthority)
    template = LeafTemplate(issuer.certificate)
    is_rsa = isinstance(key, rsa.RSAPrivateKey)
    tbs = template.to_be_signed(Leaf(names, new_serial(), validity, public_key_der(key.public_key()), is_rsa))
    return x509.load_der_x509_certificate(template.signed(tbs, sign(issuer.key, tbs)))


@pytest.mark.parametrize("key", [P256, P384, RSA_2048], ids=["P-256", "P-384", "RSA"])
def test_a_leaf_obeys_the_x509_svid_standard_and_nothing_is_in_it_beside(key: PrivateKey) -> None:
    leaf = issued(key)
    assert check_leaf(leaf) == WEB
    assert leaf.version is x509.Version.v3
    assert leaf.subject == x509.Name([])
    assert leaf.issuer == ISSUER.certificate.subject
    assert leaf.public_key() == key.public_key()
    leaf.verify_directly_issued_by(ISSUER.certificate)
    assert {(extension.oid, extension.critical) for extension in leaf.extensions} == {
        (x509.BasicConstraints.oid, True),
        (x509.KeyUsage.oid, True),
        (x509.ExtendedKeyUsage.oid, False),
        (x509.AuthorityKeyIdentifier.oid, False),
        (x509.SubjectKeyIdentifier.oid, False),
        (x509.SubjectAlternativeName.oid, True),
    }
    uses = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(uses) == [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


@pytest.mark.parametrize(("key", "enciphers"), [(P256, False), (P384, False), (RSA_2048, True)])
def test_only_an_rsa_key_enciphers_keys(key: PrivateKey, *, enciphers: bool) -> None:
    usage = issued(key).extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.digital_signature
    assert usage.key_encipherment is enciphers
    others = (usage.content_commitment, usage.data_encipherment, usage.key_agreement, usage.key_cert_sign)
    assert not any((*others, usage.crl_sign))


def test_the_spiffe_id_comes_first_among_the_names_then_dns_names_then_addresses() -> None:
    addresses = (ip_address("10.1.2.3"), ip_address("fd00::1"))
    leaf = issued(names=Names(WEB, ("web.default.svc", "web"), addresses))
    assert list(leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value) == [
        x509.UniformResourceIdentifier(str(WEB)),
        x509.DNSName("web.default.svc"),
        x509.DNSName("web"),
        x509.IPAddress(addresses[0]),
        x509.IPAddress(addresses[1]),
    ]


@pytest.mark.parametrize("length", [60, 127, 128, 255, 256, 2048 - 20])
def test_a_name_of_any_length_comes_through(length: int) -> None:
    spiffe_id = SpiffeID.parse("spiffe://cluster.local/" + "a" * (length - 23))
    assert check_leaf(issued(names=Names(spiffe_id))) == spiffe_id


def test_the_key_identifier_of_a_leaf_is_that_of_rfc_7093_and_its_issuers_is_the_issuers_own() -> None:
    leaf = issued()
    own = leaf.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    # RFC 7093 2, method 1, of the point of a fixed key, worked out by hand with sha256sum.
    assert own == key_identifier(public_key_der(P256.public_key()))
    assert len(own) == 20
    issuer = ISSUER.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    assert leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier == issuer


def test_an_issuer_without_key_identifier_gets_the_usual_one() -> None:
    """Some old CAs have none; then everybody computes it in the first way of RFC 5280 4.2.1.2."""
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "old")]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "old")]))
        .public_key(P256.public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + HOUR)
    )
    old = builder.sign(P256, ISSUER.certificate.signature_hash_algorithm)  # type: ignore[arg-type]  # it is SHA-256
    template = LeafTemplate(old)
    key_der = public_key_der(P256.public_key())
    tbs = template.to_be_signed(Leaf(Names(WEB), 1, Validity(NOW, NOW + HOUR), key_der, rsa=False))
    leaf = x509.load_der_x509_certificate(template.signed(tbs, sign(P256, tbs)))
    expected = x509.AuthorityKeyIdentifier.from_issuer_public_key(P256.public_key())
    assert leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value == expected


@pytest.mark.parametrize(
    "not_after",
    [
        datetime(2049, 12, 31, 23, 59, 59, tzinfo=UTC),
        datetime(2050, 1, 1, tzinfo=UTC),
        datetime(2051, 2, 3, 4, 5, 6, tzinfo=UTC),
        datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC),
    ],
)
def test_an_instant_of_any_century_comes_through(not_after: datetime) -> None:
    leaf = issued(validity=Validity(NOW, not_after))
    assert (leaf.not_valid_before_utc, leaf.not_valid_after_utc) == (NOW, not_after)


def test_the_name_of_an_issuer_is_copied_byte_for_byte() -> None:
    class Latin(FakeAuthority):
        """A CA whose name is a PrintableString, as many are, and not our UTF8String."""

    odd = Latin(now=NOW)
    odd.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "old CA", _type=x509.name._ASN1Type.PrintableString)])
    odd.certificate = (
        x509.CertificateBuilder(extensions=list(odd.certificate.extensions))
        .subject_name(odd.name)
        .issuer_name(odd.name)
        .public_key(odd.key.public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + HOUR)
        .sign(odd.key, odd.certificate.signature_hash_algorithm)  # type: ignore[arg-type]  # it is SHA-256
    )
    assert bytes.fromhex("13066f6c64204341") in issued(issuer=odd).tbs_certificate_bytes


def test_serial_numbers_are_random_positive_and_of_128_bits() -> None:
    serials = [new_serial() for _ in range(2000)]
    assert len(set(serials)) == len(serials)
    assert all(0 < serial < 1 << 128 for serial in serials)
    # Each of the 128 bits is set in about half of them: that none of 2,000 draws does it has no chance.
    assert all(any(serial >> bit & 1 for serial in serials) for bit in range(128))


class TestRoot:
    def root(self, key: PrivateKey = P256) -> x509.Certificate:
        return self_signed_root(LOCAL, key, Validity(NOW, NOW + 3650 * 24 * HOUR))

    def test_obeys_the_standard_for_signing_certificates(self) -> None:
        root = self.root()
        root.verify_directly_issued_by(root)
        constraints = root.extensions.get_extension_for_class(x509.BasicConstraints)
        assert (constraints.critical, constraints.value.ca) == (True, True)
        usage = root.extensions.get_extension_for_class(x509.KeyUsage)
        assert (usage.critical, usage.value.key_cert_sign, usage.value.crl_sign) == (True, True, True)
        assert not usage.value.digital_signature
        names = root.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert list(names) == [x509.UniformResourceIdentifier("spiffe://cluster.local")]

    def test_is_named_for_its_trust_domain_and_its_key(self) -> None:
        root, other = self.root(), self.root(P384)
        (organization,) = root.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
        assert organization.value == "cluster.local"
        identifier = root.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
        (name,) = root.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        assert identifier.hex() in str(name.value)
        assert root.subject != other.subject

    def test_of_a_trust_domain_with_a_long_name_keeps_to_the_bounds_of_a_subject(self) -> None:
        long = TrustDomain("a" * 255)
        root = self_signed_root(long, P256, Validity(NOW, NOW + HOUR))
        (organization,) = root.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
        assert len(str(organization.value)) == 64
        names = root.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert list(names) == [x509.UniformResourceIdentifier(str(long.id))]
