"""The only place where keys, certificates and CSRs are read from PEM and DER, and written to them.

Parsers are bounded, take exactly what their name says and raise `InvalidPEM` for everything else. No error message
holds any of the bytes.
"""

from __future__ import annotations

import binascii
import itertools
import re
from collections.abc import Sequence

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
    load_der_public_key,
    load_pem_private_key,
)
from cryptography.utils import CryptographyDeprecationWarning

from istio_auth.errors import InvalidPEM
from istio_auth.keys import PrivateKey, PublicKey, allowed_private_key, allowed_public_key

MAX_CERTIFICATES_BYTES = 1 << 20
MAX_CSR_BYTES = 16 << 10
MAX_KEY_BYTES = 64 << 10
MAX_PUBLIC_KEY_BYTES = 4 << 10
_PEM_START = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----")
# What cryptography raises for bytes that it can not read; the warning, if a program turns warnings into errors.
_UNREADABLE = (ValueError, x509.InvalidVersion, UnsupportedAlgorithm, CryptographyDeprecationWarning)
# A sequence that begins with a version and a sequence (RFC 5208 5); in the older forms no sequence follows.
_PKCS8_START = re.compile(rb"\x30(?:[\x00-\x7f]|\x81.|\x82..)\x02\x01[\x00\x01]\x30", re.DOTALL)
_CERTIFICATE_START = b"-----BEGIN CERTIFICATE-----"
_CSR_LABELS = (b"CERTIFICATE REQUEST", b"NEW CERTIFICATE REQUEST")


def read_certificates(pem: bytes) -> tuple[x509.Certificate, ...]:
    """The certificates of a PEM file, in their order, at least one.

    Raises:
        InvalidPEM: there is none, one does not parse, or the file holds something else or too much.
    """
    _bounded(pem, MAX_CERTIFICATES_BYTES, "certificates")
    labels = _PEM_START.findall(pem)
    if not labels or any(label != b"CERTIFICATE" for label in labels):
        raise InvalidPEM("expected certificates in PEM and nothing else")
    try:
        found = tuple(map(_numbered, x509.load_pem_x509_certificates(pem)))
    except _UNREADABLE as error:
        raise InvalidPEM("a certificate in the PEM does not parse") from error
    if len(found) != len(labels):  # the parser skips a block without an end
        raise InvalidPEM("a certificate in the PEM is truncated")
    return found


def read_der_certificates(der: bytes) -> tuple[x509.Certificate, ...]:
    """The certificates in concatenated DER, as the SPIFFE Workload API sends them; at least one.

    Raises:
        InvalidPEM: there is none, or one does not parse.
    """
    _bounded(der, MAX_CERTIFICATES_BYTES, "certificates")
    found: list[x509.Certificate] = []
    while der:
        size = _der_size(der)
        found.append(read_der_certificate(der[:size]))
        der = der[size:]
    if not found:
        raise InvalidPEM("expected at least one certificate in DER")
    return tuple(found)


def read_der_certificate(der: bytes) -> x509.Certificate:
    """One certificate in DER.

    Raises:
        InvalidPEM: the bytes are not exactly one certificate.
    """
    try:
        return _numbered(x509.load_der_x509_certificate(der))
    except _UNREADABLE as error:
        raise InvalidPEM("a certificate in DER does not parse") from error


def write_certificates(certificates: Sequence[x509.Certificate]) -> bytes:
    """The certificates as PEM, in their order, each ended by a newline."""
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)


def write_der(certificate: x509.Certificate) -> bytes:
    """A certificate in DER."""
    return certificate.public_bytes(Encoding.DER)


def pem_of_der(der: bytes) -> str:
    """A certificate in DER as PEM, ended by a newline, without reading it (RFC 7468 5.1)."""
    text = binascii.b2a_base64(der, newline=False).decode()
    lines = "\n".join([text[start : start + 64] for start in range(0, len(text), 64)])
    return f"-----BEGIN CERTIFICATE-----\n{lines}\n-----END CERTIFICATE-----\n"


def read_private_key(pem: bytes, *, validate: bool = True) -> PrivateKey:
    """A private key in PEM: PKCS#8, or the older EC and RSA forms; not encrypted.

    Args:
        pem: the bytes.
        validate: whether to check that the numbers of an RSA key are sound, which takes longer than many signatures. A
            caller that passes False must prove the key by a signature.

    Raises:
        InvalidPEM: the bytes are not exactly one such key.
        KeyRejected: its type or size is not allowed.
    """
    _bounded(pem, MAX_KEY_BYTES, "a private key")
    if len(_PEM_START.findall(pem.replace(b"-----BEGIN EC PARAMETERS-----", b""))) != 1:
        raise InvalidPEM("expected exactly one private key in PEM")
    try:
        key = load_pem_private_key(pem, password=None, unsafe_skip_rsa_key_validation=not validate)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # Without the cause: a parser's message could quote the input, and this input is a secret.
        raise InvalidPEM("the private key does not parse, or is encrypted") from None
    return allowed_private_key(key)


def read_credential_bundle(pem: bytes) -> tuple[tuple[x509.Certificate, ...], PrivateKey]:
    """The certificates and the private key of one file, as Kubernetes writes it with `credentialBundlePath`.

    Kubernetes puts the key first; any other order is taken too.

    Raises:
        InvalidPEM: there is not exactly one key, no certificate, or something else.
        KeyRejected: the key's type or size is not allowed.
    """
    _bounded(pem, MAX_CERTIFICATES_BYTES, "a credential bundle")
    starts = [match.start() for match in _PEM_START.finditer(pem)]
    blocks = [pem[start:end] for start, end in itertools.pairwise([*starts, len(pem)])]
    chain = [block for block in blocks if block.startswith(_CERTIFICATE_START)]
    key = read_private_key(b"".join(block for block in blocks if not block.startswith(_CERTIFICATE_START)))
    return read_certificates(b"".join(chain)), key


def read_der_private_key(der: bytes) -> PrivateKey:
    """A private key as PKCS#8 in DER, not encrypted.

    Raises:
        InvalidPEM: the bytes are not exactly one such key.
        KeyRejected: its type or size is not allowed.
    """
    _bounded(der, MAX_KEY_BYTES, "a private key")
    if not _PKCS8_START.match(der):
        raise InvalidPEM("expected a private key as PKCS#8 in DER, not encrypted")
    try:
        key = load_der_private_key(der, password=None)
    except (*_UNREADABLE, TypeError):
        raise InvalidPEM("the private key does not parse") from None  # without the cause, as above
    return allowed_private_key(key)


def read_der_public_key(der: bytes) -> PublicKey:
    """A public key as SubjectPublicKeyInfo in DER.

    Raises:
        InvalidPEM: the bytes are not exactly one.
        KeyRejected: its type or size is not allowed.
    """
    _bounded(der, MAX_PUBLIC_KEY_BYTES, "a public key")
    try:
        return allowed_public_key(load_der_public_key(der))
    except _UNREADABLE as error:
        raise InvalidPEM("the public key does not parse") from error


def write_private_key(key: PrivateKey) -> bytes:
    """A private key as unencrypted PKCS#8 PEM. For memory, sockets and files of mode 0600 only."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def write_der_private_key(key: PrivateKey) -> bytes:
    """A private key as unencrypted PKCS#8 DER. For memory and sockets only."""
    return key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())


def write_traditional_private_key(key: PrivateKey) -> bytes:
    """A private key as unencrypted PKCS#1 (RSA) or SEC 1 (EC) PEM, for old readers (see `write_private_key`)."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())


def read_csr(pem: bytes) -> x509.CertificateSigningRequest:
    """Exactly one certificate signing request in PEM. Its signature is not checked here.

    Raises:
        InvalidPEM: the bytes are something else, more than one, or too many.
    """
    _bounded(pem, MAX_CSR_BYTES, "a certificate signing request")
    labels = _PEM_START.findall(pem)
    if len(labels) != 1 or labels[0] not in _CSR_LABELS:
        raise InvalidPEM("expected exactly one certificate signing request in PEM")
    try:
        return x509.load_pem_x509_csr(pem)
    except _UNREADABLE as error:
        raise InvalidPEM("the certificate signing request does not parse") from error


def read_der_csr(der: bytes) -> x509.CertificateSigningRequest:
    """Exactly one certificate signing request in DER. Its signature is not checked here.

    Raises:
        InvalidPEM: the bytes are something else, or too many.
    """
    _bounded(der, MAX_CSR_BYTES, "a certificate signing request")
    try:
        return x509.load_der_x509_csr(der)
    except _UNREADABLE as error:
        raise InvalidPEM("the certificate signing request does not parse") from error


def write_csr(csr: x509.CertificateSigningRequest) -> bytes:
    """A certificate signing request as PEM."""
    return csr.public_bytes(Encoding.PEM)


def _numbered(certificate: x509.Certificate) -> x509.Certificate:
    if certificate.serial_number <= 0:
        raise ValueError("a serial number is positive (RFC 5280 4.1.2.2)")
    return certificate


def _bounded(data: bytes, limit: int, what: str) -> None:
    if len(data) > limit:
        raise InvalidPEM(f"{what}: {len(data)} bytes are more than the {limit} allowed")


def _der_size(der: bytes) -> int:
    """How many bytes the first DER SEQUENCE takes (X.690 8.1.3)."""
    if len(der) < 2 or der[0] != 0x30:
        raise InvalidPEM("expected a certificate in DER")
    if der[1] < 0x80:
        return 2 + der[1]
    width = der[1] & 0x7F
    if not 1 <= width <= 4 or len(der) < 2 + width:
        raise InvalidPEM("expected a certificate in DER")
    return 2 + width + int.from_bytes(der[2 : 2 + width], "big")
