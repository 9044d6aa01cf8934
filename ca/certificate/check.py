"""Checks every field of a certificate before it leaves the CA, with no code of the builder's.

The builder (`ca.certificate.build`) writes DER by hand; this parses with cryptography and compares with what was meant.
Comparing parsed values is not enough: they do not show the inner signature algorithm, the types of strings and the
unused bits of a bit string. So the parts that are the same for every leaf of an issuer are compared byte by byte, with
a model that cryptography's own builder encodes. A difference is our own fault: the certificate is dropped, and the
caller is not told why. A signature that cryptography made in this process is not checked again; one made elsewhere is.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from datetime import timedelta
from typing import TypeAlias

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.utils import CryptographyDeprecationWarning
from cryptography.x509.oid import ExtendedKeyUsageOID, SignatureAlgorithmOID

from ca.certificate.build import Leaf, Names
from ca.profile import Validity
from istio_auth.errors import ConfigurationError, IstioAuthError
from istio_auth.keys import PublicKey, public_key_der, public_key_of

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
_CONSTANT_EXTENSIONS = 4
_LONGEST_HEADERS = 8  # bytes between the key and the first extension
# What stands before the bits of a key: RSA from 2048 bits; P-256 and P-384 by the size of the whole.
_RSA_HEADER, _POINT_HEADERS = 24, {91: 26, 120: 23}
_UNREADABLE = (
    *(
        ValueError,
        TypeError,
        LookupError,
        x509.InvalidVersion,
        x509.DuplicateExtension,
        x509.UnsupportedGeneralNameType,
    ),
    *(UnsupportedAlgorithm, CryptographyDeprecationWarning),
)


class WrongCertificate(IstioAuthError):
    """A certificate that we built is not as it was meant; `field` says where it differs."""

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

    Raises:
        ConfigurationError: the issuer's name is encoded in a way that can not be checked.
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
        self._longest = longest
        self._check_signature = check_signature
        self._latest_end = min(certificate.not_valid_after_utc for certificate in (issuer, *above))
        self._earliest_start = max(certificate.not_valid_before_utc for certificate in (issuer, *above))
        self._algorithm, encoded_algorithm = _algorithm(public_key_of(issuer))
        name = issuer.subject.public_bytes()
        if name not in issuer.tbs_certificate_bytes:
            raise ConfigurationError("the name of the issuer is not encoded in DER: its leaves could not be checked")
        self._algorithm_and_issuer = encoded_algorithm + name
        self._for_ecdsa = _model_extensions(issuer, _SIGNS)
        self._for_rsa = _model_extensions(issuer, _SIGNS_AND_ENCIPHERS)

    def check(self, der: bytes, meant: Leaf) -> x509.Certificate:
        """The certificate, parsed, if every field of it is as it was meant.

        Raises:
            WrongCertificate: one is not.
        """
        try:
            certificate = x509.load_der_x509_certificate(der)
            self._check_fields(certificate, meant)
            self._check_validity(certificate, meant.validity)
            self._check_bytes(der, certificate.signature, meant)
            _check_extensions(certificate.extensions, meant)
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

    def _check_bytes(self, der: bytes, signature: bytes, meant: Leaf) -> None:
        """Compare the constant parts, the validity and the key, each in its place.

        algorithm, issuer | validity | empty subject | key | header | constant extensions | ...
        """
        before, _, after = der.partition(meant.key_der)
        if not before.endswith(_EMPTY_SUBJECT):
            raise WrongCertificate("public key")
        rest = before.removesuffix(_EMPTY_SUBJECT)
        times = _times(meant.validity)
        if not rest.endswith(times):
            raise WrongCertificate("validity encoding")
        if not rest.removesuffix(times).endswith(self._algorithm_and_issuer):
            raise WrongCertificate("issuer or inner signature algorithm")
        constant = self._for_rsa if meant.rsa else self._for_ecdsa
        if not (after.startswith(_EXTENSIONS) and constant in after[: len(constant) + _LONGEST_HEADERS]):
            raise WrongCertificate("constant extensions")
        if der[-len(signature) - 1] != 0:
            raise WrongCertificate("signature encoding", "a signature has no unused bits")


def _check_extensions(extensions: x509.Extensions, meant: Leaf) -> None:
    """Compare the two extensions that differ from leaf to leaf, and check that there are no others."""
    found = list(extensions)
    if len(found) != _CONSTANT_EXTENSIONS + 2:
        raise WrongCertificate("extensions", f"there are {len(found)}")
    *_, identifier, names = found
    _same("key identifier", identifier, _key_identifier(meant))
    _same("names", names, _alternative_names(meant.names))


def _same(field: str, found: object, meant: object) -> None:
    if found != meant:
        raise WrongCertificate(field)


def _alternative_names(names: Names) -> _Extension:
    if not names.spiffe_id.path:
        raise WrongCertificate("SPIFFE ID", "a leaf names a workload, not a trust domain (XL-03)")
    value = x509.SubjectAlternativeName(
        [
            x509.UniformResourceIdentifier(str(names.spiffe_id)),
            *map(x509.DNSName, names.dns_names),
            *map(x509.IPAddress, names.ip_addresses),
        ]
    )
    return x509.Extension(x509.SubjectAlternativeName.oid, critical=True, value=value)


def _key_identifier(leaf: Leaf) -> _Extension:
    """RFC 7093 2, method 1: the hash of the bits of the key, which are the last part of the SubjectPublicKeyInfo."""
    start = _RSA_HEADER if leaf.rsa else _POINT_HEADERS[len(leaf.key_der)]
    value = x509.SubjectKeyIdentifier(hashlib.sha256(leaf.key_der[start:]).digest()[:20])
    return x509.Extension(x509.SubjectKeyIdentifier.oid, critical=False, value=value)


@functools.lru_cache(maxsize=256)
def _times(validity: Validity) -> bytes:
    """Validity in DER: UTCTime until 2049, GeneralizedTime from 2050 (RFC 5280 4.1.2.5)."""
    content = b""
    for instant in (validity.not_before, validity.not_after):
        if instant.year < 2050:
            content += b"\x17\x0d" + instant.strftime("%y%m%d%H%M%SZ").encode()
        else:
            content += b"\x18\x0f" + instant.strftime("%Y%m%d%H%M%SZ").encode()
    return bytes([0x30, len(content)]) + content


def _model_extensions(issuer: x509.Certificate, usage: x509.KeyUsage) -> bytes:
    """The constant extensions, as cryptography's builder encodes them in a throw-away certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    model = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(issuer.not_valid_before_utc)
        .not_valid_after(issuer.not_valid_after_utc)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(_BOTH_USES, critical=False)
        .add_extension(_issuer_identifier(issuer), critical=False)
        .sign(key, hashes.SHA256())
    )
    after = model.tbs_certificate_bytes.partition(public_key_der(key.public_key()))[2]
    for _ in ("explicit tag", "sequence"):
        after = after[2 if after[1] < 0x80 else 3 :]
    return after


def _issuer_identifier(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    for extension in issuer.extensions:
        if isinstance(extension.value, x509.SubjectKeyIdentifier):
            return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(extension.value)
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(public_key_of(issuer))  # RFC 5280 4.2.1.2, method 1


def _algorithm(issuer_key: PublicKey) -> tuple[x509.ObjectIdentifier, bytes]:
    """The one algorithm of a kind of key, and its AlgorithmIdentifier (RFC 5758 3.2, RFC 4055 5)."""
    if isinstance(issuer_key, rsa.RSAPublicKey):
        return SignatureAlgorithmOID.RSA_WITH_SHA256, b"\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0b\x05\x00"
    ecdsa = b"\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03"
    if issuer_key.key_size == 384:
        return SignatureAlgorithmOID.ECDSA_WITH_SHA384, ecdsa + b"\x03"
    return SignatureAlgorithmOID.ECDSA_WITH_SHA256, ecdsa + b"\x02"
