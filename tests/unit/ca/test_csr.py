"""Vetting: of a CSR only its key and its wish survive, and a bad one nothing at all."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from ca.csr import CSRRefused, vet_csr, vet_csr_der
from istio_auth.errors import Code
from istio_auth.keys import PrivateKey, same_key
from istio_auth.spiffe_id import SpiffeID
from tests.fakes.der import tlv

WEB = "spiffe://cluster.local/ns/default/sa/web"
P256 = ec.generate_private_key(ec.SECP256R1())
RSA_2048 = rsa.generate_private_key(65537, 2048)


@dataclass(frozen=True)
class Request:
    """How a CSR looks; `replace` one field to break one rule."""

    key: PrivateKey | ed25519.Ed25519PrivateKey = field(default=P256, repr=False)
    uris: Sequence[str] = (WEB,)
    subject: x509.Name = field(default_factory=lambda: x509.Name([]))
    digest: hashes.SHA256 | hashes.SHA384 | hashes.SHA512 | None = field(default_factory=hashes.SHA256)
    extra: Sequence[x509.ExtensionType] = ()

    def csr(self) -> x509.CertificateSigningRequest:
        builder = x509.CertificateSigningRequestBuilder().subject_name(self.subject)
        if self.uris:
            names = x509.SubjectAlternativeName(list(map(x509.UniformResourceIdentifier, self.uris)))
            builder = builder.add_extension(names, critical=False)
        for extension in self.extra:
            builder = builder.add_extension(extension, critical=True)
        return builder.sign(self.key, self.digest)

    def pem(self) -> bytes:
        return self.csr().public_bytes(Encoding.PEM)

    def der(self) -> bytes:
        return self.csr().public_bytes(Encoding.DER)


GOOD = Request()
INFO = GOOD.csr().tbs_certrequest_bytes
ECDSA_SHA256, ECDSA_SHA1 = bytes.fromhex("06082a8648ce3d040302"), bytes.fromhex("06072a8648ce3d0401")
RSA_SHA256 = bytes.fromhex("06092a864886f70d01010b0500")


def usage(**set_: bool) -> x509.KeyUsage:
    names = ["digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"]
    names += ["key_cert_sign", "crl_sign", "encipher_only", "decipher_only"]
    return x509.KeyUsage(**(dict.fromkeys(names, False) | set_))


def refused(pem: bytes) -> None:
    with pytest.raises(CSRRefused) as caught:
        vet_csr(pem)
    assert caught.value.code is Code.MALFORMED
    assert vet_csr(GOOD.pem()).spiffe_id == SpiffeID.parse(WEB)


@pytest.mark.parametrize(
    "key",
    [P256, ec.generate_private_key(ec.SECP384R1()), RSA_2048, rsa.generate_private_key(65537, 3072)],
    ids=["P-256", "P-384", "RSA-2048", "RSA-3072"],
)
@pytest.mark.parametrize("digest", [hashes.SHA256(), hashes.SHA384(), hashes.SHA512()], ids=lambda d: d.name)
def test_a_csr_proves_its_key_and_tells_its_wish(
    key: PrivateKey, digest: hashes.SHA256 | hashes.SHA384 | hashes.SHA512
) -> None:
    request = Request(key, digest=digest)
    for vetted in (vet_csr(request.pem()), vet_csr_der(request.der())):
        assert same_key(vetted.public_key, key.public_key())
        assert vetted.spiffe_id == SpiffeID.parse(WEB)


def test_a_pem_without_last_newline_or_with_windows_ones_is_the_same_csr() -> None:
    pem = GOOD.pem()
    assert vet_csr(pem.rstrip()).spiffe_id == vet_csr(pem.replace(b"\n", b"\r\n")).spiffe_id == SpiffeID.parse(WEB)


@pytest.mark.parametrize("organization", ["", "anything"])
def test_a_subject_says_nothing(organization: str) -> None:
    attribute = (
        x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization)
        if organization
        else x509.NameAttribute(NameOID.ORGANIZATION_NAME, "", _validate=False)  # as pilot-agent sends it
    )
    assert vet_csr(Request(subject=x509.Name([attribute])).pem()).spiffe_id == SpiffeID.parse(WEB)


@pytest.mark.parametrize(
    "uris",
    [
        (),
        (WEB, "spiffe://cluster.local/ns/default/sa/db"),
        ("https://cluster.local/ns/default/sa/web",),
        ("spiffe://cluster.local/ns/default/sa/we%62",),
        ("spiffe://cluster.local/ns/../sa/web",),
        ("spiffe://cluster.local/ns/default/sa/web\n",),
        ("spiffe://cluster.local/" + "a" * 3000,),
    ],
    ids=["none", "two", "no SPIFFE ID", "percent", "dots", "newline", "3 kB"],
)
def test_a_wish_that_is_no_spiffe_id_is_no_wish(uris: Sequence[str]) -> None:
    assert vet_csr(Request(uris=uris).pem()).spiffe_id is None


def test_a_name_that_is_no_ascii_is_no_wish() -> None:
    assert vet_csr(in_pem(signed(INFO.replace(b"/sa/web", b"/sa/w\xc3\xa9")))).spiffe_id is None


def test_names_that_do_not_parse_are_refused() -> None:
    refused(in_pem(signed(INFO.replace(b"\x86" + bytes([len(WEB)]), b"\x86" + bytes([len(WEB) + 1])))))


@pytest.mark.parametrize("garbage", [b"", b"\0" * 100, b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n"])
def test_garbage_is_refused(garbage: bytes) -> None:
    refused(garbage)
    with pytest.raises(CSRRefused):
        vet_csr_der(garbage)


def test_a_truncated_csr_and_one_with_something_behind_it_are_refused() -> None:
    der = GOOD.der()
    for wrong in (der[:-1], der + b"\0"):
        refused(in_pem(wrong))
        with pytest.raises(CSRRefused):
            vet_csr_der(wrong)
    assert vet_csr_der(der).spiffe_id == SpiffeID.parse(WEB)


def test_two_csrs_in_one_text_are_refused() -> None:
    refused(GOOD.pem() * 2)


def test_a_certificate_beside_a_csr_is_refused() -> None:
    refused(GOOD.pem() + b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")


def test_an_oversized_csr_is_refused_unread() -> None:
    names = tuple(f"{WEB}-{number}" for number in range(1000))
    huge = Request(uris=names)
    refused(huge.pem())
    with pytest.raises(CSRRefused):
        vet_csr_der(huge.der())


def test_a_csr_signed_by_another_key_is_refused() -> None:
    refused(in_pem(signed(INFO, key=ec.generate_private_key(ec.SECP256R1()))))
    assert vet_csr(in_pem(signed(INFO))).spiffe_id == SpiffeID.parse(WEB)


def test_a_csr_changed_after_signing_is_refused() -> None:
    refused(in_pem(GOOD.der().replace(b"/sa/web", b"/sa/db1")))


@pytest.mark.parametrize("bits", [1024, 2047])
def test_a_weak_rsa_key_is_refused(bits: int) -> None:
    refused(Request(rsa.generate_private_key(65537, bits)).pem())


@pytest.mark.parametrize(
    "key",
    [ec.generate_private_key(ec.SECP521R1()), ec.generate_private_key(ec.SECP256K1())],
    ids=["P-521", "secp256k1"],
)
def test_a_curve_that_is_not_ours_is_refused(key: ec.EllipticCurvePrivateKey) -> None:
    refused(Request(key).pem())


def test_a_key_of_another_kind_is_refused() -> None:
    refused(Request(ed25519.Ed25519PrivateKey.generate(), digest=None).pem())


def test_a_signature_over_sha1_is_refused() -> None:
    refused(in_pem(signed(INFO, algorithm=ECDSA_SHA1, digest=hashes.SHA1())))  # noqa: S303  # the fault


def test_a_signature_algorithm_of_another_kind_of_key_is_refused() -> None:
    refused(in_pem(signed(INFO, algorithm=RSA_SHA256)))
    refused(in_pem(signed(Request(RSA_2048).csr().tbs_certrequest_bytes)))


@pytest.mark.parametrize(
    "wish",
    [
        x509.BasicConstraints(ca=True, path_length=None),
        usage(digital_signature=True, key_cert_sign=True),
        usage(crl_sign=True),
    ],
    ids=["basicConstraints", "keyCertSign", "cRLSign"],
)
def test_a_csr_for_a_ca_is_refused(wish: x509.ExtensionType) -> None:
    refused(Request(extra=(wish,)).pem())


def test_a_csr_that_asks_for_a_leaf_in_so_many_words_is_welcome() -> None:
    words = (x509.BasicConstraints(ca=False, path_length=None), usage(digital_signature=True))
    assert vet_csr(replace(GOOD, extra=words).pem()).spiffe_id == SpiffeID.parse(WEB)


def test_a_refusal_tells_the_caller_why() -> None:
    bits = 1024
    with pytest.raises(CSRRefused) as caught:
        vet_csr(Request(rsa.generate_private_key(65537, bits)).pem())
    assert "1024" in caught.value.public


def signed(
    info: bytes,
    *,
    algorithm: bytes = ECDSA_SHA256,
    digest: hashes.HashAlgorithm | None = None,
    key: ec.EllipticCurvePrivateKey = P256,
) -> bytes:
    """A CSR in DER of this information, whatever that is."""
    signature = key.sign(info, ec.ECDSA(digest or hashes.SHA256()))
    return tlv(0x30, info + tlv(0x30, algorithm) + tlv(0x03, b"\0" + signature))


def in_pem(der: bytes) -> bytes:
    text = base64.encodebytes(der)
    return b"-----BEGIN CERTIFICATE REQUEST-----\n" + text + b"-----END CERTIFICATE REQUEST-----\n"
