"""A certificate taken apart for people: every part that can be read, and None for each that can not.

Nothing here verifies anything: the certificate may come from anybody.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from istio_auth.errors import InvalidSpiffeID
from istio_auth.keys import key_type
from istio_auth.spiffe_id import SpiffeID
from istio_auth.svid import UNREADABLE_EXTENSIONS

Kind = TypeVar("Kind", bound=x509.ExtensionType)
Holder = x509.Certificate | x509.CertificateSigningRequest

_USAGES = {
    "digital_signature": "digitalSignature",
    "content_commitment": "contentCommitment",
    "key_encipherment": "keyEncipherment",
    "data_encipherment": "dataEncipherment",
    "key_agreement": "keyAgreement",
    "key_cert_sign": "keyCertSign",
    "crl_sign": "cRLSign",
}
_EXTENDED_USAGES = {
    "1.3.6.1.5.5.7.3.1": "serverAuth",
    "1.3.6.1.5.5.7.3.2": "clientAuth",
    "2.5.29.37.0": "anyExtendedKeyUsage",
}


@dataclass(frozen=True, slots=True)
class Part:
    """An extension: what it says, and whether it is marked critical."""

    value: x509.ExtensionType
    critical: bool


@dataclass(frozen=True, slots=True)
class Names:
    """The subject alternative names by kind, in their order."""

    uris: tuple[str, ...] = ()
    dns: tuple[str, ...] = ()
    others: tuple[str, ...] = ()

    @property
    def spiffe_id(self) -> SpiffeID | None:
        """The SPIFFE ID, if the only URI name is one."""
        if len(self.uris) != 1:
            return None
        try:
            return SpiffeID.parse(self.uris[0])
        except InvalidSpiffeID:
            return None


def extensions_of(holder: Holder) -> x509.Extensions | None:
    """The extensions, or None if they can not be read."""
    try:
        return holder.extensions
    except UNREADABLE_EXTENSIONS:
        return None


def part(holder: Holder, kind: type[Kind]) -> x509.Extension[Kind] | None:
    """One extension, or None if it is not there or can not be read."""
    extensions = extensions_of(holder)
    try:
        return None if extensions is None else extensions.get_extension_for_class(kind)
    except x509.ExtensionNotFound:
        return None


def names_of(holder: Holder) -> Names:
    """The subject alternative names."""
    if (found := part(holder, x509.SubjectAlternativeName)) is None:
        return Names()
    return Names(
        tuple(found.value.get_values_for_type(x509.UniformResourceIdentifier)),
        tuple(found.value.get_values_for_type(x509.DNSName)),
        tuple(
            str(name.value)
            for name in found.value
            if not isinstance(name, x509.UniformResourceIdentifier | x509.DNSName)
        ),
    )


def is_ca(certificate: x509.Certificate) -> bool:
    """Whether it says that it is a CA certificate."""
    constraints = part(certificate, x509.BasicConstraints)
    return constraints is not None and constraints.value.ca


def usages(holder: Holder) -> list[str]:
    """The key usages, by their names in RFC 5280."""
    found = part(holder, x509.KeyUsage)
    return [] if found is None else [word for name, word in _USAGES.items() if getattr(found.value, name)]


def extended_usages(holder: Holder) -> list[str]:
    """The extended key usages, by name or number."""
    found = part(holder, x509.ExtendedKeyUsage)
    if found is None:
        return []
    return [_EXTENDED_USAGES.get(oid.dotted_string, oid.dotted_string) for oid in found.value]


def key_words(holder: Holder) -> str:
    """The kind of its key, for people: `P-256`, `RSA-2048`, `unknown`."""
    try:
        key = holder.public_key()
    except (ValueError, UnsupportedAlgorithm):
        return "unknown"
    if isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey):
        return key_type(key)
    return type(key).__name__.removeprefix("_").removesuffix("PublicKey")


def signature_hash(holder: Holder) -> str:
    """The hash under its signature: `sha256`; empty if it is unknown or there is none."""
    try:
        algorithm = holder.signature_hash_algorithm
    except (ValueError, UnsupportedAlgorithm):
        return ""
    return "" if algorithm is None else algorithm.name


def issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether the certificate names this issuer and is signed with its key."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def self_signed(certificate: x509.Certificate) -> bool:
    """Whether it is signed by its own key."""
    return issued_by(certificate, certificate)


def name_words(name: x509.Name) -> str:
    """A distinguished name for people."""
    return name.rfc4514_string() or "(empty)"


def is_chain(certificates: Sequence[x509.Certificate]) -> bool:
    """Whether these are a leaf and its issuers, and not a collection of authorities."""
    return bool(certificates) and not is_ca(certificates[0])
