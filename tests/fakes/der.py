"""Certificates that no library will make: rewrapped by hand, byte by byte (X.690)."""

from __future__ import annotations

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

_ECDSA_SHA256 = bytes.fromhex("300a06082a8648ce3d040302")
_ECDSA_SHA1 = bytes.fromhex("300906072a8648ce3d0401")
_VERSION_3 = bytes.fromhex("a003020102")


def tlv(tag: int, body: bytes) -> bytes:
    """One DER element."""
    if len(body) < 0x80:
        return bytes([tag, len(body)]) + body
    size = len(body).to_bytes((len(body).bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(size)]) + size + body


def sha1_signed(certificate: x509.Certificate, issuer: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    """The same certificate, signed again with ECDSA over SHA-1."""
    body = _body(certificate.tbs_certificate_bytes)
    tbs = tlv(0x30, body.replace(_ECDSA_SHA256, _ECDSA_SHA1, 1))
    signature = issuer.sign(tbs, ec.ECDSA(hashes.SHA1()))  # noqa: S303  # the fault of the vector
    return x509.load_der_x509_certificate(tlv(0x30, tbs + _ECDSA_SHA1 + tlv(0x03, b"\0" + signature)))


def of_version_4(certificate: x509.Certificate) -> bytes:
    """The certificate with a version number that does not exist."""
    der = certificate.public_bytes(Encoding.DER)
    return der.replace(_VERSION_3, _VERSION_3[:-1] + b"\x03", 1)


def with_bytes(certificate: x509.Certificate, old: str, new: str) -> x509.Certificate:
    """The certificate with these bytes (in hex, of one length) replaced wherever they stand; its signature breaks."""
    before, after = bytes.fromhex(old), bytes.fromhex(new)
    der = certificate.public_bytes(Encoding.DER)
    assert before in der
    assert len(before) == len(after)
    return x509.load_der_x509_certificate(der.replace(before, after))


def _body(element: bytes) -> bytes:
    header = 2 if element[1] < 0x80 else 2 + (element[1] & 0x7F)
    return element[header:]
