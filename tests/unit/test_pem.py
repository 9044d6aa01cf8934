"""PEM and DER in and out: bounded, exact, and silent about what they read."""

from __future__ import annotations

import base64
import subprocess
import warnings
from typing import Literal

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from istio_auth import pem
from istio_auth.errors import InvalidPEM, KeyRejected
from istio_auth.keys import new_private_key
from tests.fakes.authority import FakeAuthority
from tests.fakes.der import of_version_4, tlv


def csr_pem() -> bytes:
    key = new_private_key()
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return request.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


def block(label: str, body: bytes) -> bytes:
    return f"-----BEGIN {label}-----\n{base64.encodebytes(body).decode()}-----END {label}-----\n".encode()


def test_certificates_come_back_in_their_order(authority: FakeAuthority) -> None:
    chain = (authority.svid().leaf, authority.certificate, authority.svid("/other").leaf)
    assert pem.read_certificates(pem.write_certificates(chain)) == chain
    assert pem.read_der_certificates(b"".join(map(pem.write_der, chain))) == chain


def test_text_around_certificates_does_no_harm(authority: FakeAuthority) -> None:
    text = b"subject=CN = web\n" + pem.write_certificates([authority.certificate]) + b"\n# the end\n"
    assert pem.read_certificates(text) == (authority.certificate,)


def test_a_certificate_file_holds_certificates_and_nothing_else(authority: FakeAuthority) -> None:
    good = pem.write_certificates([authority.certificate])
    key = pem.write_private_key(new_private_key())
    der = pem.write_der(authority.certificate)
    for wrong in (
        b"",
        b"junk",
        key,
        good + key,
        csr_pem(),
        block("TRUSTED CERTIFICATE", der),
        block("X509 CRL", der),
        good + block("CERTIFICATE", b"junk"),
        block("CERTIFICATE", der[:-1]),
        block("CERTIFICATE", der + b"\0"),
        good[:-30],
        good + good[:-30],
        good.replace(b"MII", b"M!I", 1),
    ):
        with pytest.raises(InvalidPEM):
            pem.read_certificates(wrong)


def test_der_is_taken_exactly(authority: FakeAuthority) -> None:
    der = pem.write_der(authority.certificate)
    for wrong in (
        b"",
        b"0",
        b"\x31" + der[1:],
        der[:-1],
        der + b"\0",
        der + der[:-1],
        b"\x30\x80" + der[2:],
        b"\x30\x85\0\0\0\0\0",
        b"\x30\x84\xff\xff\xff\xff",
    ):
        with pytest.raises(InvalidPEM):
            pem.read_der_certificates(wrong)
        with pytest.raises(InvalidPEM):
            pem.read_der_certificate(wrong)


def test_a_version_that_does_not_exist_is_refused_and_not_a_crash(authority: FakeAuthority) -> None:
    der = of_version_4(authority.certificate)
    with pytest.raises(InvalidPEM):
        pem.read_der_certificate(der)
    with pytest.raises(InvalidPEM):
        pem.read_certificates(block("CERTIFICATE", der))


@pytest.mark.parametrize("serial", ["00", "ff"], ids=["zero", "negative"])
@pytest.mark.parametrize("action", ["error", "ignore"])
def test_a_serial_number_is_positive(authority: FakeAuthority, serial: str, action: Literal["error", "ignore"]) -> None:
    certificate = authority.sign(authority.leaf(), new_private_key().public_key(), serial=5)
    good = pem.write_der(certificate)
    der = good.replace(bytes.fromhex("a003020102020105"), bytes.fromhex("a0030201020201" + serial))
    assert pem.read_der_certificate(good) == certificate
    with warnings.catch_warnings():
        warnings.simplefilter(action)
        with pytest.raises(InvalidPEM):
            pem.read_der_certificate(der)
        with pytest.raises(InvalidPEM):
            pem.read_certificates(block("CERTIFICATE", der))


def test_sizes_are_bounded_before_anything_is_parsed(authority: FakeAuthority) -> None:
    space = b" " * (1 << 20)
    with pytest.raises(InvalidPEM):
        pem.read_certificates(pem.write_certificates([authority.certificate]) + space)
    with pytest.raises(InvalidPEM):
        pem.read_der_certificates(pem.write_der(authority.certificate) * 4000)
    with pytest.raises(InvalidPEM):
        pem.read_private_key(pem.write_private_key(new_private_key()) + space)
    with pytest.raises(InvalidPEM):
        pem.read_csr(csr_pem() + space)


@pytest.mark.parametrize("form", [PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL])
def test_keys_are_read_in_their_usual_forms(form: PrivateFormat) -> None:
    for key in (ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65537, 2048)):
        text = key.private_bytes(Encoding.PEM, form, NoEncryption())
        assert pem.read_private_key(text).public_key() == key.public_key()


def test_a_key_in_der_is_pkcs8_and_nothing_else() -> None:
    for key in (new_private_key(), ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65537, 2048)):
        good = pem.write_der_private_key(key)
        assert pem.read_der_private_key(good).private_numbers() == key.private_numbers()
        older = key.private_bytes(Encoding.DER, PrivateFormat.TraditionalOpenSSL, NoEncryption())
        encrypted = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, BestAvailableEncryption(b"hunter2"))
        public = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        for wrong in (b"", older, encrypted, public, good[:-1], good + b"\0", good + good, pem.write_private_key(key)):
            with pytest.raises(InvalidPEM) as caught:
                pem.read_der_private_key(wrong)
            assert caught.value.__cause__ is None


def test_a_strange_rsa_key_can_be_read_without_the_time_it_takes_to_validate() -> None:
    numbers = rsa.generate_private_key(65537, 2048).private_numbers()
    strange = rsa.RSAPrivateNumbers(
        numbers.p, numbers.q, numbers.d + 2, numbers.dmp1, numbers.dmq1, numbers.iqmp, numbers.public_numbers
    ).private_key(unsafe_skip_rsa_key_validation=True)
    text = pem.write_private_key(strange)
    with pytest.raises(InvalidPEM):
        pem.read_private_key(text)
    assert pem.read_private_key(text, validate=False).public_key() == strange.public_key()


def test_a_key_as_openssl_ecparam_writes_it_is_read() -> None:
    made = subprocess.run(
        ["openssl", "ecparam", "-name", "prime256v1", "-genkey"], capture_output=True, check=True, timeout=30
    )
    assert b"EC PARAMETERS" in made.stdout
    assert isinstance(pem.read_private_key(made.stdout), ec.EllipticCurvePrivateKey)


def test_what_is_no_plain_key_is_refused_without_a_word_of_it(authority: FakeAuthority) -> None:
    key = new_private_key()
    good = pem.write_private_key(key)
    encrypted = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"hunter2"))
    body = b"".join(good.splitlines()[1:-1])
    for wrong in (
        b"",
        b"junk",
        encrypted,
        good + good,
        good + pem.write_certificates([authority.certificate]),
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        good[: len(good) // 2],
        b"-----BEGIN PRIVATE KEY-----\n" + body[:-20] + b"\n-----END PRIVATE KEY-----\n",
        block("PRIVATE KEY", base64.b64decode(body)[:-5]),
        block("PRIVATE KEY", tlv(0x30, b"")),
    ):
        with pytest.raises(InvalidPEM) as caught:
            pem.read_private_key(wrong)
        assert caught.value.__cause__ is None
        assert body[:12].decode() not in str(caught.value)
        assert body[:12].decode() not in repr(caught.value)


def test_a_weak_key_is_refused_for_what_it_is() -> None:
    weak = rsa.generate_private_key(65537, 1024)  # noqa: S505  # the point of the test
    for key in (weak, ec.generate_private_key(ec.SECP521R1())):
        with pytest.raises(KeyRejected):
            pem.read_private_key(pem.write_private_key(key))
        with pytest.raises(KeyRejected):
            pem.read_der_private_key(pem.write_der_private_key(key))


def test_a_credential_bundle_has_one_key_at_any_place_and_the_chain_in_its_order(authority: FakeAuthority) -> None:
    svid = FakeAuthority(parent=authority).svid()
    leaf, issuer = (pem.write_certificates([each]) for each in svid.chain)
    key = svid.key_pem()
    for bundle in (
        key + leaf + issuer,
        leaf + issuer + key,
        leaf + key + issuer,
        b"# from Kubernetes\n" + key + leaf + issuer,
    ):
        chain, found = pem.read_credential_bundle(bundle)
        assert chain == svid.chain
        assert found.public_key() == svid.private_key.public_key()


def test_what_is_no_credential_bundle_is_refused_without_a_word_of_it(authority: FakeAuthority) -> None:
    svid = authority.svid()
    key, chain = svid.key_pem(), svid.chain_pem()
    for wrong, words in (
        (b"", "exactly one private key"),
        (b"junk", "exactly one private key"),
        (chain, "exactly one private key"),
        (key, "certificates in PEM"),
        (key + key + chain, "exactly one private key"),
        (key + chain + pem.write_private_key(new_private_key()), "exactly one private key"),
        (key + csr_pem() + chain, "exactly one private key"),
        (key[: len(key) // 2] + chain, "does not parse"),
        (key + chain[:-30], "does not parse|truncated"),
        (key + chain[:99] + chain, "does not parse|truncated"),
        (key + chain + b"x" * pem.MAX_CERTIFICATES_BYTES, "more than"),
        (pem.write_traditional_private_key(svid.private_key).replace(b"EC PRIVATE", b"DSA PRIVATE") + chain, "parse"),
    ):
        with pytest.raises(InvalidPEM, match=words) as refusal:
            pem.read_credential_bundle(wrong)
        assert not any(line in str(refusal.value) for line in key.decode().splitlines()[1:-1])
    assert pem.read_credential_bundle(key + chain)[0] == svid.chain


def test_exactly_one_signing_request_is_read(authority: FakeAuthority) -> None:
    good = csr_pem()
    assert pem.write_csr(pem.read_csr(good)) == good
    renamed = good.replace(b"CERTIFICATE REQUEST", b"NEW CERTIFICATE REQUEST")
    assert pem.read_csr(renamed) == pem.read_csr(good)
    for wrong in (
        b"",
        b"junk",
        good + good,
        good + pem.write_certificates([authority.certificate]),
        pem.write_certificates([authority.certificate]),
        block("CERTIFICATE REQUEST", b"junk"),
        block("CERTIFICATE REQUEST", base64.b64decode(b"".join(good.splitlines()[1:-1])) + b"\0"),
        block("CERTIFICATE REQUEST", _of_version_2(good)),
    ):
        with pytest.raises(InvalidPEM):
            pem.read_csr(wrong)


def _of_version_2(csr: bytes) -> bytes:
    der = base64.b64decode(b"".join(csr.splitlines()[1:-1]))
    return der.replace(bytes.fromhex("020100"), bytes.fromhex("020101"), 1)
