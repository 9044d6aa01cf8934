"""Builds certificates in DER: leaves (X509-SVID 4) and a root of our own (X509-SVID 3).

A leaf is made from profile, grant and public key alone. Most of its bytes are the same for every leaf of one issuer,
so a `LeafTemplate` encodes those once. Only serial, validity, key, key identifier and names are encoded for each
certificate. That takes a fifth of the time of a general builder; the little DER it needs (X.690 8 and 11) is below.

    TBSCertificate ::= version 3, serial, signature algorithm, issuer, validity, subject (empty), key, extensions
    extensions     ::= BasicConstraints (critical, no CA), KeyUsage (critical), ExtendedKeyUsage (server, client),
                       AuthorityKeyIdentifier, SubjectKeyIdentifier, SubjectAltName (critical, the URI first)

`ca.certificate.check` reads each result back with other code. Leaves are signed in `ca.issuer` alone.
"""

from __future__ import annotations

import functools
import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime
from ipaddress import IPv4Address, IPv6Address

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from ca.profile import Validity
from istio_auth.keys import PrivateKey, PublicKey, public_key_der, public_key_of, signature_hash
from istio_auth.spiffe_id import SpiffeID, TrustDomain

_INTEGER, _BIT_STRING, _OCTET_STRING = 0x02, 0x03, 0x04
_UTC_TIME, _GENERALIZED_TIME, _SEQUENCE = 0x17, 0x18, 0x30
_VERSION_3 = bytes.fromhex("a003020102")
_EMPTY_NAME = bytes.fromhex("3000")
_ECDSA_SHA256 = bytes.fromhex("300a06082a8648ce3d040302")
_ECDSA_SHA384 = bytes.fromhex("300a06082a8648ce3d040303")
_RSA_SHA256 = bytes.fromhex("300d06092a864886f70d01010b0500")
_NOT_A_CA = bytes.fromhex("300c 0603551d13 0101ff 0402 3000")
_SIGNS = bytes.fromhex("300e 0603551d0f 0101ff 0404 03020780")
_SIGNS_AND_ENCIPHERS = bytes.fromhex("300e 0603551d0f 0101ff 0404 030205a0")
_BOTH_USES = bytes.fromhex("301d 0603551d25 0416 3014 06082b06010505070301 06082b06010505070302")
_KEY_IDENTIFIER = bytes.fromhex("301d 0603551d0e 0416 0414")  # 20 bytes follow
_AUTHORITY_KEY_IDENTIFIER = bytes.fromhex("0603551d23")
_NAMES_CRITICAL = bytes.fromhex("0603551d11 0101ff")
_URI, _DNS, _IP = 0x86, 0x82, 0x87  # GeneralName, RFC 5280 4.2.1.6
_EXTENSIONS = 0xA3
_MAX_ORGANIZATION = 64  # RFC 5280 A.1, ub-organization-name
_USAGES = (
    *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
    *("key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
)


@dataclass(frozen=True, slots=True)
class Names:
    """The names in a leaf: one SPIFFE ID, and whatever stands beside it, in its order."""

    spiffe_id: SpiffeID
    dns_names: tuple[str, ...] = ()
    ip_addresses: tuple[IPv4Address | IPv6Address, ...] = ()


@dataclass(frozen=True, slots=True)
class Leaf:
    """What a leaf must say, beside what all leaves of its issuer say.

    Args:
        names: its names.
        serial: its serial number.
        validity: when it begins and ends.
        key_der: its SubjectPublicKeyInfo.
        rsa: whether that is an RSA key.
    """

    names: Names
    serial: int
    validity: Validity
    key_der: bytes
    rsa: bool


class LeafTemplate:
    """Builds the leaves of one issuer, up to the signature.

    Args:
        issuer: the issuer's certificate; its subject is copied byte for byte.
    """

    def __init__(self, issuer: x509.Certificate) -> None:
        self._algorithm = _algorithm(public_key_of(issuer))
        self._after_serial = self._algorithm + _raw_subject(issuer)
        identifier = _tlv(_SEQUENCE, _tlv(0x80, _identifier(issuer)))
        authority = _tlv(_SEQUENCE, _AUTHORITY_KEY_IDENTIFIER + _tlv(_OCTET_STRING, identifier))
        self._for_ecdsa = _NOT_A_CA + _SIGNS + _BOTH_USES + authority
        self._for_rsa = _NOT_A_CA + _SIGNS_AND_ENCIPHERS + _BOTH_USES + authority

    def to_be_signed(self, leaf: Leaf) -> bytes:
        """The TBSCertificate of a leaf: the bytes to sign (RFC 5280 4.1.2)."""
        extensions = (
            (self._for_rsa if leaf.rsa else self._for_ecdsa)
            + _KEY_IDENTIFIER
            + key_identifier(leaf.key_der)
            + _tlv(_SEQUENCE, _NAMES_CRITICAL + _tlv(_OCTET_STRING, _general_names(leaf.names)))
        )
        return _tlv(
            _SEQUENCE,
            _VERSION_3
            + _integer(leaf.serial)
            + self._after_serial
            + _tlv(_SEQUENCE, _time(leaf.validity.not_before) + _time(leaf.validity.not_after))
            + _EMPTY_NAME
            + leaf.key_der
            + _tlv(_EXTENSIONS, _tlv(_SEQUENCE, extensions)),
        )

    def signed(self, to_be_signed: bytes, signature: bytes) -> bytes:
        """The certificate in DER (RFC 5280 4.1)."""
        return _tlv(_SEQUENCE, to_be_signed + self._algorithm + _tlv(_BIT_STRING, b"\0" + signature))


def new_serial() -> int:
    """A serial number: 128 random bits, never zero (RFC 5280 4.1.2.2)."""
    while not (serial := secrets.randbits(128)):
        pass
    return serial


def key_identifier(key_der: bytes) -> bytes:
    """The identifier of a key in DER: 160 bits of the SHA-256 of the key's bits (RFC 7093 2, method 1)."""
    start, _ = _inside(key_der, 0)
    start, end = _inside(key_der, _inside(key_der, start)[1])  # after the algorithm
    return hashlib.sha256(key_der[start + 1 : end]).digest()[:20]  # after the count of unused bits


def self_signed_root(
    trust_domain: TrustDomain, key: PrivateKey, validity: Validity, *, renews: x509.Certificate | None = None
) -> x509.Certificate:
    """A root certificate over its own key.

    Args:
        trust_domain: whose root it is: its URI name and its organization.
        key: the key; the common name is unique to it.
        validity: the validity.
        renews: an older root of the same key. The new one keeps its name and key identifier, and so verifies the same
            leaves.
    """
    if renews is None:
        identifier = key_identifier(public_key_der(key.public_key()))
        name = _root_name(trust_domain, identifier)
    else:
        identifier, name = _identifier(renews), renews.subject
    usage = dict.fromkeys(_USAGES, False) | {"key_cert_sign": True, "crl_sign": True}
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(trust_domain.id))])
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(new_serial())
        .not_valid_before(validity.not_before)
        .not_valid_after(validity.not_after)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(**usage), critical=True)
        .add_extension(x509.SubjectKeyIdentifier(identifier), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier(identifier, None, None), critical=False)
        .add_extension(names, critical=False)
        .sign(key, signature_hash(key))
    )


def _root_name(trust_domain: TrustDomain, identifier: bytes) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, trust_domain.name[:_MAX_ORGANIZATION]),
            x509.NameAttribute(NameOID.COMMON_NAME, f"istio-auth root {identifier.hex()}"),
        ]
    )


def _algorithm(issuer_key: PublicKey) -> bytes:
    """The AlgorithmIdentifier of what `istio_auth.keys.sign` makes (RFC 5758 3.2, RFC 4055 5)."""
    if isinstance(issuer_key, rsa.RSAPublicKey):
        return _RSA_SHA256
    return _ECDSA_SHA384 if issuer_key.curve.name == "secp384r1" else _ECDSA_SHA256


def _identifier(issuer: x509.Certificate) -> bytes:
    """The issuer's own key identifier, or the usual one if it has none; its leaves repeat it (RFC 5280 4.2.1.1)."""
    try:
        return issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    except x509.ExtensionNotFound:
        return x509.SubjectKeyIdentifier.from_public_key(public_key_of(issuer)).digest


def _raw_subject(certificate: x509.Certificate) -> bytes:
    """The bytes of the subject in a certificate: if encoded again, the name of an old CA might come out differently."""
    der = certificate.tbs_certificate_bytes
    position = _inside(der, 0)[0]
    if der[position] == 0xA0:
        position = _inside(der, position)[1]
    for _ in ("serial", "signature algorithm", "issuer", "validity"):
        position = _inside(der, position)[1]
    return der[position : _inside(der, position)[1]]


def _general_names(names: Names) -> bytes:
    content = _tlv(_URI, str(names.spiffe_id).encode("ascii"))
    for name in names.dns_names:
        content += _tlv(_DNS, name.encode("ascii"))
    for address in names.ip_addresses:
        content += _tlv(_IP, address.packed)
    return _tlv(_SEQUENCE, content)


@functools.lru_cache(maxsize=256)  # the certificates of a batch share their instants
def _time(instant: datetime) -> bytes:
    """UTCTime until 2049, GeneralizedTime from 2050 (RFC 5280 4.1.2.5)."""
    if 1950 <= instant.year < 2050:
        return _tlv(_UTC_TIME, f"{instant:%y%m%d%H%M%SZ}".encode())
    return _tlv(_GENERALIZED_TIME, f"{instant.year:04}{instant:%m%d%H%M%SZ}".encode())


def _integer(value: int) -> bytes:
    """A positive INTEGER: as short as it can be, with a first bit of zero."""
    return _tlv(_INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def _tlv(tag: int, content: bytes) -> bytes:
    """One element: tag, length in its shortest form, content (X.690 8.1, 10.1)."""
    length = len(content)
    if length < 0x80:
        return bytes((tag, length)) + content
    if length < 0x100:
        return bytes((tag, 0x81, length)) + content
    size = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(size))) + size + content


def _inside(der: bytes, position: int) -> tuple[int, int]:
    """Where the content of the element at a position begins and ends. Only for DER that was already parsed once."""
    length, start = der[position + 1], position + 2
    if length >= 0x80:
        start += length & 0x7F
        length = int.from_bytes(der[position + 2 : start], "big")
    return start, start + length
