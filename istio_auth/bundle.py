"""Who may vouch for a trust domain: `TrustBundle`, `BundleSet` and the SPIFFE bundle format both ways.

In a set, bundles are looked up by trust domain (see `bundle_document`). The JSON rules are those of SPIFFE Trust Domain
and Bundle 4 and X509-SVID 6: an entry of unknown type or use, or without `x5c`, is ignored, and the others count. Of
several `x5c` values the first counts.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol, Self, TypeAlias

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from istio_auth import strict_json
from istio_auth.bundle_document import check_distinct, find, load, members
from istio_auth.errors import Fault, InvalidBundle, InvalidPEM, VerificationError
from istio_auth.pem import read_certificates, read_der_certificate, write_certificates, write_der
from istio_auth.spiffe_id import TrustDomain

JSON: TypeAlias = strict_json.JSON

DEFAULT_REFRESH_HINT = timedelta(minutes=5)
_X509_USE = "x509-svid"
_KNOWN_KEY_TYPES = ("EC", "RSA")


@dataclass(frozen=True, slots=True)
class TrustBundle:
    """The authorities of one trust domain.

    Args:
        trust_domain: whose authorities these are.
        x509_authorities: the CA certificates that may issue its X509-SVIDs; if empty, no X509-SVID is valid (BD-05).
        sequence: grows with every change; None if the publisher does not give one.
        refresh_hint: how often a consumer should look again; None if the publisher does not say.
    """

    trust_domain: TrustDomain
    x509_authorities: tuple[x509.Certificate, ...] = ()
    sequence: int | None = None
    refresh_hint: timedelta | None = None

    @classmethod
    def from_pem(cls, trust_domain: TrustDomain, pem: bytes) -> Self:
        """A bundle of the CA certificates in a PEM text, without sequence.

        Raises:
            InvalidPEM: there is no certificate, one does not parse, or the text holds something else.
        """
        return cls(trust_domain, _distinct(read_certificates(pem)))

    @classmethod
    def from_json(cls, trust_domain: TrustDomain, text: bytes | str) -> Self:
        """The bundle in a SPIFFE bundle document. The document does not name its trust domain (BD-11).

        Raises:
            InvalidBundle: it is no such document, or an X.509 entry in it is damaged.
        """
        return cls.from_document(trust_domain, load(text))

    @classmethod
    def from_document(cls, trust_domain: TrustDomain, document: JSON) -> Self:
        """The bundle in a SPIFFE bundle document that is parsed already (see `from_json`)."""
        if not isinstance(document, dict) or not isinstance(keys := document.get("keys"), list):
            raise InvalidBundle("a SPIFFE bundle is a JSON object with an array 'keys'")
        hint = _integer(document, "spiffe_refresh_hint")
        return cls(
            trust_domain,
            _distinct(found for entry in keys if (found := _x509_authority(entry)) is not None),
            sequence=_integer(document, "spiffe_sequence"),
            refresh_hint=None if hint is None else timedelta(seconds=min(hint, 366 * 86400)),
        )

    def to_json(self) -> bytes:
        """The SPIFFE bundle document, the same bytes for the same bundle.

        Raises:
            InvalidBundle: the key of an authority has no form in JSON (it is neither RSA nor ECDSA on a NIST curve).
        """
        return json.dumps(self.to_document(), indent=2).encode() + b"\n"

    def to_document(self) -> dict[str, JSON]:
        """The SPIFFE bundle document, before it is written as text (see `to_json`)."""
        document: dict[str, JSON] = {"keys": [_jwk(authority) for authority in self.x509_authorities]}
        if self.sequence is not None:
            document["spiffe_sequence"] = self.sequence
        if self.refresh_hint is not None:
            document["spiffe_refresh_hint"] = int(self.refresh_hint.total_seconds())
        return document

    def to_pem(self) -> bytes:
        """The X.509 authorities as PEM, the same bytes for the same bundle."""
        return write_certificates(self.x509_authorities)

    def bundle(self, trust_domain: TrustDomain) -> TrustBundle:
        """This bundle, if asked for its own trust domain: so a single bundle is a `BundleSource`.

        Raises:
            VerificationError: another trust domain was asked for.
        """
        if trust_domain != self.trust_domain:
            raise _no_bundle(trust_domain)
        return self


class BundleSource(Protocol):
    """Knows the bundles that are trusted now."""

    def bundle(self, trust_domain: TrustDomain) -> TrustBundle:
        """The bundle of a trust domain.

        Raises:
            VerificationError: that trust domain is not trusted.
        """
        ...


@dataclass(frozen=True, slots=True)
class BundleSet:
    """The bundles of several trust domains, kept apart.

    Raises:
        InvalidBundle: two of them are of the same trust domain.
    """

    bundles: tuple[TrustBundle, ...] = ()

    def __post_init__(self) -> None:
        check_distinct(self.bundles)

    @classmethod
    def from_json(cls, text: bytes | str) -> Self:
        """The set in a SPIFFE bundle map (Trust Domain and Bundle, Bundle Map).

        Raises:
            InvalidBundle, InvalidSpiffeID: it is no such map, or a member is damaged. Nothing is taken then (BM-06).
        """
        return cls(tuple(TrustBundle.from_document(name, member) for name, member in members(text)))

    def to_json(self) -> bytes:
        """The SPIFFE bundle map, without refresh hints (BM-04; see `TrustBundle.to_json`)."""
        domains = {bundle.trust_domain.name: bundle.to_document() for bundle in self.bundles}
        for member in domains.values():
            member.pop("spiffe_refresh_hint", None)
        return json.dumps({"trust_domains": domains}, indent=2).encode() + b"\n"

    def bundle(self, trust_domain: TrustDomain) -> TrustBundle:
        """The bundle of one trust domain.

        Raises:
            VerificationError: there is none.
        """
        if (bundle := find(self.bundles, trust_domain)) is None:
            raise _no_bundle(trust_domain)
        return bundle

    def having(self, bundle: TrustBundle) -> Self:
        """The same set with this bundle, which replaces the old one of its trust domain if there is one."""
        others = tuple(old for old in self.bundles if old.trust_domain != bundle.trust_domain)
        return type(self)((bundle, *others))

    def __iter__(self) -> Iterator[TrustBundle]:
        return iter(self.bundles)


def _no_bundle(trust_domain: TrustDomain) -> VerificationError:
    return VerificationError(Fault.FOREIGN_TRUST_DOMAIN, f"{trust_domain} is not among the trusted domains")


def _distinct(certificates: Iterable[x509.Certificate]) -> tuple[x509.Certificate, ...]:
    return tuple(dict.fromkeys(certificates))


def _integer(document: dict[str, JSON], name: str) -> int | None:
    value = document.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise InvalidBundle(f"{name} is a whole number that is not negative")
    return value


def _x509_authority(entry: JSON) -> x509.Certificate | None:
    if not isinstance(entry, dict) or entry.get("kty") not in _KNOWN_KEY_TYPES or entry.get("use") != _X509_USE:
        return None
    values = entry.get("x5c")
    if not isinstance(values, list) or not values:
        return None
    try:
        return read_der_certificate(base64.b64decode(str(values[0]), validate=True))
    except (ValueError, InvalidPEM) as error:
        raise InvalidBundle("the first x5c value of an x509-svid entry is no certificate in base64") from error


def _jwk(authority: x509.Certificate) -> dict[str, JSON]:
    x5c: list[JSON] = [base64.b64encode(write_der(authority)).decode()]
    return {"use": _X509_USE, **_key_parameters(authority), "x5c": x5c}


def _key_parameters(authority: x509.Certificate) -> dict[str, JSON]:
    """The public key as RFC 7518 6.2 and 6.3 write it."""
    key = authority.public_key()
    if isinstance(key, rsa.RSAPublicKey):
        numbers = key.public_numbers()
        return {"kty": "RSA", "n": _base64url(numbers.n), "e": _base64url(numbers.e)}
    if isinstance(key, ec.EllipticCurvePublicKey):
        point, size = key.public_numbers(), (key.key_size + 7) // 8
        curve = {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"}.get(key.curve.name)
        if curve:
            return {"kty": "EC", "crv": curve, "x": _base64url(point.x, size), "y": _base64url(point.y, size)}
    raise InvalidBundle("an authority's key is neither RSA nor ECDSA on a NIST curve")


def _base64url(number: int, size: int = 0) -> str:
    data = number.to_bytes(size or (number.bit_length() + 7) // 8, "big")
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
