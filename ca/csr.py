"""Vets a CSR: from untrusted bytes to a `VettedCSR`, or an error.

A CSR proves possession of a key (RFC 2986); nothing else in it is taken as proven. The SPIFFE ID in it is only a wish,
which some callers express this way; a registry decides whether they may have it. All other names are dropped here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509.oid import SignatureAlgorithmOID

from istio_auth.errors import InvalidPEM, InvalidSpiffeID, KeyRejected, MalformedError
from istio_auth.keys import PublicKey, public_key_of
from istio_auth.pem import read_csr, read_der_csr
from istio_auth.spiffe_id import SpiffeID
from istio_auth.svid import UNREADABLE_EXTENSIONS

_PKCS1 = padding.PKCS1v15()
_ECDSA: Mapping[x509.ObjectIdentifier, ec.ECDSA] = {
    SignatureAlgorithmOID.ECDSA_WITH_SHA256: ec.ECDSA(hashes.SHA256()),
    SignatureAlgorithmOID.ECDSA_WITH_SHA384: ec.ECDSA(hashes.SHA384()),
    SignatureAlgorithmOID.ECDSA_WITH_SHA512: ec.ECDSA(hashes.SHA512()),
}
_RSA: Mapping[x509.ObjectIdentifier, hashes.SHA256 | hashes.SHA384 | hashes.SHA512] = {
    SignatureAlgorithmOID.RSA_WITH_SHA256: hashes.SHA256(),
    SignatureAlgorithmOID.RSA_WITH_SHA384: hashes.SHA384(),
    SignatureAlgorithmOID.RSA_WITH_SHA512: hashes.SHA512(),
}


class CSRRefused(MalformedError):
    """A certificate signing request that is refused whoever sends it."""

    def __init__(self, message: str) -> None:
        super().__init__(message, public=message)  # tells the caller about its own bytes, and nothing about us


@dataclass(frozen=True, slots=True)
class VettedCSR:
    """All that is left of a CSR.

    Args:
        public_key: an allowed key, whose owner made the CSR.
        uri: its only URI name, as it stands there.
    """

    public_key: PublicKey
    uri: str | None = None

    @property
    def spiffe_id(self) -> SpiffeID | None:
        """The identity it wishes for: its only URI name, if that is a SPIFFE ID. Proves nothing."""
        try:
            return None if self.uri is None else SpiffeID.parse(self.uri)
        except InvalidSpiffeID:
            return None


def vet_csr(pem: bytes) -> VettedCSR:
    """What a CSR in PEM proves and wishes.

    Raises:
        CSRRefused: it is not exactly one CSR, its key or hash is weak, its signature wrong, or it asks for a CA.
    """
    try:
        return _vet(read_csr(pem))
    except (InvalidPEM, KeyRejected) as error:
        raise CSRRefused(str(error)) from error


def vet_csr_der(der: bytes) -> VettedCSR:
    """What a CSR in DER proves and wishes (see `vet_csr`)."""
    try:
        return _vet(read_der_csr(der))
    except (InvalidPEM, KeyRejected) as error:
        raise CSRRefused(str(error)) from error


def _vet(csr: x509.CertificateSigningRequest) -> VettedCSR:
    public_key = public_key_of(csr)  # before the signature: with a giant key its check would take very long
    _check_signature(csr, public_key)
    try:
        extensions = csr.extensions
    except UNREADABLE_EXTENSIONS as error:
        raise CSRRefused("the extensions of the certificate signing request do not parse") from error
    wish = None
    for extension in extensions:
        value = extension.value
        if isinstance(value, x509.SubjectAlternativeName):
            wish = _only_uri(value)
        elif isinstance(value, x509.BasicConstraints):
            if value.ca:
                raise CSRRefused("the certificate signing request asks for a CA certificate")
        elif isinstance(value, x509.KeyUsage) and (value.key_cert_sign or value.crl_sign):
            raise CSRRefused("the certificate signing request asks for a key that signs certificates or CRLs")
    return VettedCSR(public_key, wish)


def _check_signature(csr: x509.CertificateSigningRequest, public_key: PublicKey) -> None:
    """Check the signature with the algorithm that the CSR names, which must use SHA-2 and fit the key."""
    name = csr.signature_algorithm_oid
    try:
        if (ecdsa := _ECDSA.get(name)) is not None and isinstance(public_key, ec.EllipticCurvePublicKey):
            public_key.verify(csr.signature, csr.tbs_certrequest_bytes, ecdsa)
        elif (rsa_hash := _RSA.get(name)) is not None and isinstance(public_key, rsa.RSAPublicKey):
            public_key.verify(csr.signature, csr.tbs_certrequest_bytes, _PKCS1, rsa_hash)
        else:
            raise CSRRefused("the certificate signing request is not signed with SHA-2, or not by the key in it")
    except InvalidSignature as error:
        raise CSRRefused("the certificate signing request is not signed by the key in it") from error


def _only_uri(names: x509.SubjectAlternativeName) -> str | None:
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    return uris[0] if len(uris) == 1 else None
