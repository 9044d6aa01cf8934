"""X509SVID: an identity together with its proof (X509-SVID 2). Immutable; rotation replaces it whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Self

from cryptography import x509

from istio_auth.errors import InvalidSpiffeID, InvalidSVID
from istio_auth.keys import PrivateKey, public_key_of, same_key
from istio_auth.pem import (
    read_certificates,
    read_credential_bundle,
    read_private_key,
    write_certificates,
    write_private_key,
)
from istio_auth.spiffe_id import SpiffeID

# What cryptography raises for extensions that it can not read.
UNREADABLE_EXTENSIONS = (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType)


@dataclass(frozen=True, slots=True)
class X509SVID:
    """A SPIFFE ID with the certificate chain that proves it and the private key to the leaf.

    Args:
        id: the SPIFFE ID, the same as in the leaf.
        chain: the leaf, then its intermediates, without the root.
        private_key: the key to the leaf; never printed.
        hint: a name by which a workload with several identities picks one (Workload API 5.2.1).

    Raises:
        InvalidSVID: the chain is empty, or leaf, key and ID do not belong together.
        KeyRejected: the type or size of the leaf's key is not allowed.
    """

    id: SpiffeID
    chain: tuple[x509.Certificate, ...]
    private_key: PrivateKey = field(repr=False, compare=False)  # the leaf holds its public half
    hint: str = ""

    def __post_init__(self) -> None:
        if not self.chain:
            raise InvalidSVID("an SVID has at least one certificate")
        if spiffe_id_of(self.leaf) != self.id:
            raise InvalidSVID(f"the leaf certificate names {spiffe_id_of(self.leaf)}, not {self.id}")
        if not same_key(public_key_of(self.leaf), self.private_key.public_key()):
            raise InvalidSVID("the private key is not the key of the leaf certificate")

    @classmethod
    def of(cls, chain: Sequence[x509.Certificate], private_key: PrivateKey, *, hint: str = "") -> Self:
        """The SVID of a chain and its key.

        Raises:
            InvalidSVID: they do not belong together, or the leaf names no SPIFFE ID.
            KeyRejected: the type or size of the leaf's key is not allowed.
        """
        if not chain:
            raise InvalidSVID("an SVID has at least one certificate")
        return cls(spiffe_id_of(chain[0]), tuple(chain), private_key, hint)

    @classmethod
    def parse(cls, chain_pem: bytes, key_pem: bytes) -> Self:
        """The SVID in two PEM texts.

        Raises:
            InvalidPEM, KeyRejected, InvalidSVID: the texts are malformed or do not belong together.
        """
        return cls.of(read_certificates(chain_pem), read_private_key(key_pem))

    @classmethod
    def parse_credential_bundle(cls, pem: bytes) -> Self:
        """The SVID in one PEM text with key and chain.

        Raises:
            InvalidPEM, KeyRejected, InvalidSVID: the text is malformed, or its parts do not belong together.
        """
        return cls.of(*read_credential_bundle(pem))

    @property
    def leaf(self) -> x509.Certificate:
        """The certificate of the identity itself."""
        return self.chain[0]

    @property
    def not_before(self) -> datetime:
        """The latest beginning in the chain."""
        return max(certificate.not_valid_before_utc for certificate in self.chain)

    @property
    def not_after(self) -> datetime:
        """The earliest end in the chain: from then on nobody accepts this SVID."""
        return min(certificate.not_valid_after_utc for certificate in self.chain)

    def chain_pem(self) -> bytes:
        """Leaf and intermediates as PEM."""
        return write_certificates(self.chain)

    def key_pem(self) -> bytes:
        """The private key as PKCS#8 PEM. For memory, sockets and files of mode 0600 only."""
        return write_private_key(self.private_key)

    def credential_bundle_pem(self) -> bytes:
        """The private key and then the chain, for one file that always holds both (see `key_pem`)."""
        return self.key_pem() + self.chain_pem()


def uri_names(certificate: x509.Certificate) -> list[str]:
    """The URI names in a certificate's subject alternative name, in their order, not validated.

    Raises:
        InvalidSVID: the extensions do not parse.
    """
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    except UNREADABLE_EXTENSIONS as error:
        raise InvalidSVID("the certificate's extensions do not parse") from error
    return names.get_values_for_type(x509.UniformResourceIdentifier)


def spiffe_id_of(certificate: x509.Certificate) -> SpiffeID:
    """The SPIFFE ID that a certificate claims: its only URI name (XL-01). Proves nothing by itself.

    Raises:
        InvalidSVID: it has no URI name, several, or one that is no SPIFFE ID; or its extensions do not parse.
    """
    names = uri_names(certificate)
    if len(names) != 1:
        raise InvalidSVID(f"an X509-SVID has exactly one URI name, this certificate {len(names)}")
    try:
        return SpiffeID.parse(names[0])
    except InvalidSpiffeID as error:
        raise InvalidSVID(str(error)) from error
