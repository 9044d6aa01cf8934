"""Reads a certificate back before it leaves and checks every field of it, with no code of the builder's.

The builder (`ca.certificate`) writes DER by hand; this parses with cryptography and compares with what was meant. A
difference is our own fault: the certificate is dropped and the caller learns nothing. A signature made in this
process by cryptography itself is not checked again; one made by a device or a service is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import timedelta
from typing import TypeAlias

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.utils import CryptographyDeprecationWarning
from cryptography.x509.oid import ExtendedKeyUsageOID, SignatureAlgorithmOID

from ca.certificate import Leaf, Names
from ca.profile import Validity
from istio_auth.errors import IstioAuthError
from istio_auth.keys import PublicKey, public_key_of

_NOT_A_CA = x509.BasicConstraints(ca=False, path_length=None)
_BOTH_USES = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])


_SIGNS, _SIGNS_AND_ENCIPHERS = (
    x509.KeyUsage(
        digital_signature=True,
        key_encipherment=encipherment,
        content_commitment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    for encipherment in (False, True)
)
_Extension: TypeAlias = "x509.Extension[x509.ExtensionType]"
_EMPTY_SUBJECT, _EXTENSIONS = b"\x30\x00", b"\xa3"  # what stands before and after the key
# What stands before the bits of a key: RSA from 2048 bits; P-256 and P-384 by the size of the whole.
_RSA_HEADER, _POINT_HEADERS = 24, {91: 26, 120: 23}
_UNREADABLE = (
    *(ValueError, TypeError, x509.InvalidVersion, x509.DuplicateExtension, x509.UnsupportedGeneralNameType),
    *(UnsupportedAlgorithm, CryptographyDeprecationWarning),
)


class WrongCertificate(IstioAuthError):
    """A certificate that we built is not what was meant; `field` says where it differs."""

    def __init__(self, field: str, message: str = "") -> None:
        super().__init__(f"the certificate that was built is wrong in its {field}{message and ': '}{message}")
        self.field = field


class CertificateCheck:
    """Checks the leaves of one issuer.

    Args:
        issuer: the issuer's certificate.
        above: the certificates above it, the root included: no leaf outlives one of them.
        longest: the longest validity a leaf may have.
        check_signature: whether the signatures were made outside this process.
    """

    def __init__(
        self,
        issuer: x509.Certificate,
        above: Sequence[x509.Certificate] = (),
        *,
        longest: timedelta = timedelta.max,
        check_signature: bool = False,
    ) -> None:
        self._issuer = issuer
        self._subject = issuer.subject
        self._longest = longest
        self._check_signature = check_signature
        self._latest_end = min(certificate.not_valid_after_utc for certificate in (issuer, *above))
        self._earliest_start = max(certificate.not_valid_before_utc for certificate in (issuer, *above))
        self._algorithm = _algorithm(public_key_of(issuer))
        constant = [
            x509.Extension(x509.BasicConstraints.oid, critical=True, value=_NOT_A_CA),
            x509.Extension(x509.KeyUsage.oid, critical=True, value=_SIGNS),
            x509.Extension(x509.ExtendedKeyUsage.oid, critical=False, value=_BOTH_USES),
            x509.Extension(x509.AuthorityKeyIdentifier.oid, critical=False, value=_issuer_identifier(issuer)),
        ]
        enciphers = x509.Extension(x509.KeyUsage.oid, critical=True, value=_SIGNS_AND_ENCIPHERS)
        self._for_ecdsa: list[_Extension] = constant
        self._for_rsa: list[_Extension] = [constant[0], enciphers, *constant[2:]]

    def check(self, der: bytes, meant: Leaf) -> x509.Certificate:
        """The certificate, parsed, if every field of it is as it was meant.

        Raises:
            WrongCertificate: one is not.
        """
        try:
            certificate = x509.load_der_x509_certificate(der)
            self._check_fields(certificate, meant)
            _check_key(der, meant.key_der)
            self._check_validity(certificate, meant.validity)
            self._check_extensions(certificate.extensions, meant)
            if self._check_signature:
                certificate.verify_directly_issued_by(self._issuer)
        except InvalidSignature as error:
            raise WrongCertificate("signature") from error
        except _UNREADABLE as error:
            raise WrongCertificate("encoding", str(error)) from error
        return certificate

    def _check_fields(self, certificate: x509.Certificate, meant: Leaf) -> None:
        _same("version", certificate.version, x509.Version.v3)
        _same("serial", certificate.serial_number, meant.serial)
        if not 0 < meant.serial < 1 << 159:
            raise WrongCertificate("serial", "it must be positive and at most 20 bytes long (RFC 5280 4.1.2.2)")
        _same("signature algorithm", certificate.signature_algorithm_oid, self._algorithm)
        _same("issuer", certificate.issuer, self._subject)
        if certificate.subject.rdns:
            raise WrongCertificate("subject", "it must be empty")

    def _check_validity(self, certificate: x509.Certificate, meant: Validity) -> None:
        start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        _same("start", start, meant.not_before)
        _same("end", end, meant.not_after)
        if not self._earliest_start <= start < end <= self._latest_end:
            raise WrongCertificate("validity", "it must lie within that of the whole chain")
        if end - start > self._longest:
            raise WrongCertificate("validity", "it is longer than the profile allows")

    def _check_extensions(self, extensions: x509.Extensions, meant: Leaf) -> None:
        expected = [
            *(self._for_rsa if meant.rsa else self._for_ecdsa),
            x509.Extension(x509.SubjectKeyIdentifier.oid, critical=False, value=_key_identifier(meant)),
            x509.Extension(x509.SubjectAlternativeName.oid, critical=True, value=_alternative_names(meant.names)),
        ]
        found = list(extensions)
        if found == expected:
            return
        wrong = [type(one.value).__name__ for one, other in zip(found, expected, strict=False) if one != other]
        raise WrongCertificate("extensions", f"{len(found)} instead of {len(expected)}, wrong: {', '.join(wrong)}")


def _same(field: str, found: object, meant: object) -> None:
    if found != meant:
        raise WrongCertificate(field)


def _check_key(der: bytes, key_der: bytes) -> None:
    """Compare the key as bytes, between its neighbours: to parse a key takes longer than all the rest."""
    before, _, after = der.partition(key_der)
    if not (before.endswith(_EMPTY_SUBJECT) and after.startswith(_EXTENSIONS)):
        raise WrongCertificate("public key")


def _alternative_names(names: Names) -> x509.SubjectAlternativeName:
    if not names.spiffe_id.path:
        raise WrongCertificate("SPIFFE ID", "a leaf names a workload, not a trust domain (XL-03)")
    return x509.SubjectAlternativeName(
        [
            x509.UniformResourceIdentifier(str(names.spiffe_id)),
            *map(x509.DNSName, names.dns_names),
            *map(x509.IPAddress, names.ip_addresses),
        ]
    )


def _key_identifier(leaf: Leaf) -> x509.SubjectKeyIdentifier:
    """RFC 7093 2, method 1: over the key without its algorithm, which stands last in the SubjectPublicKeyInfo."""
    start = _RSA_HEADER if leaf.rsa else _POINT_HEADERS[len(leaf.key_der)]
    return x509.SubjectKeyIdentifier(hashlib.sha256(leaf.key_der[start:]).digest()[:20])


def _issuer_identifier(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    for extension in issuer.extensions:
        if isinstance(extension.value, x509.SubjectKeyIdentifier):
            return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(extension.value)
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(public_key_of(issuer))  # RFC 5280 4.2.1.2, method 1


def _algorithm(issuer_key: PublicKey) -> x509.ObjectIdentifier:
    if isinstance(issuer_key, rsa.RSAPublicKey):
        return SignatureAlgorithmOID.RSA_WITH_SHA256
    if issuer_key.key_size == 384:
        return SignatureAlgorithmOID.ECDSA_WITH_SHA384
    return SignatureAlgorithmOID.ECDSA_WITH_SHA256
