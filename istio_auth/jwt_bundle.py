"""JWTBundle and JWTBundleSet: whose keys may sign the JWT-SVIDs of a trust domain (JWT-SVID 6, Workload API 6).

This is a type of its own beside `TrustBundle`, so that the keys of one kind of SVID can not be taken for those of the
other (WA-19). A bundle is looked up by the trust domain of the token's subject; bundles are never pooled. There are two
formats. In a SPIFFE bundle only the entries with the use `jwt-svid` count. In the key sets of a Workload API an entry
need not have a use. In both, an entry that can not be used is left out with its reason and does not spoil the others,
but a set that shows a private key is refused whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol, Self

from istio_auth.bundle_document import check_distinct, find, load, members
from istio_auth.errors import InvalidBundle, MalformedError
from istio_auth.jwks import KeySet, Uses
from istio_auth.spiffe_id import TrustDomain
from istio_auth.strict_json import JSON
from istio_auth.tokens import TokenFault, TokenRefused

_SPIFFE_BUNDLE: Uses = ("jwt-svid",)  # JW-15
_WORKLOAD_API: Uses = ("jwt-svid", None)  # SPIRE leaves `use` out there


@dataclass(frozen=True, slots=True)
class JWTBundle:
    """The keys that sign the JWT-SVIDs of one trust domain.

    Args:
        trust_domain: whose keys these are.
        keys: the keys, each with its name; if empty, no JWT-SVID of that trust domain is valid (BD-05).
    """

    trust_domain: TrustDomain
    keys: KeySet = field(default_factory=KeySet)

    @classmethod
    def from_json(cls, trust_domain: TrustDomain, text: bytes | str) -> Self:
        """The JWT keys in a SPIFFE bundle document, which does not name its trust domain (BD-11).

        Raises:
            InvalidBundle: it is no such document, or shows a private key.
        """
        return cls.from_document(trust_domain, load(text))

    @classmethod
    def from_document(cls, trust_domain: TrustDomain, document: JSON) -> Self:
        """The JWT keys in a SPIFFE bundle document that is parsed already (see `from_json`)."""
        return cls._of(trust_domain, document, _SPIFFE_BUNDLE)

    @classmethod
    def from_workload_api(cls, trust_domain: TrustDomain, text: bytes | str) -> Self:
        """The keys in a key set of a Workload API, whose entries need not have a use (see `from_json`)."""
        return cls._of(trust_domain, load(text), _WORKLOAD_API)

    @classmethod
    def _of(cls, trust_domain: TrustDomain, document: JSON, uses: Uses) -> Self:
        try:
            found = KeySet.from_document(document, uses=uses)
        except MalformedError as error:
            raise InvalidBundle(f"the JWT bundle of {trust_domain} can not be used: {error}") from error
        nameless = ("a key has no name (JW-14)",) * sum(not key.key_id for key in found.keys)
        named = tuple(key for key in found.keys if key.key_id)
        return cls(trust_domain, KeySet(named, (*found.left_out, *nameless)))

    def bundle(self, trust_domain: TrustDomain) -> JWTBundle:
        """This bundle, if asked for its own trust domain: so a single bundle is a `JWTBundleSource`.

        Raises:
            TokenRefused: another trust domain was asked for.
        """
        if trust_domain != self.trust_domain:
            raise _no_bundle(trust_domain)
        return self


class JWTBundleSource(Protocol):
    """Knows the JWT bundles that are trusted now."""

    def bundle(self, trust_domain: TrustDomain) -> JWTBundle:
        """The JWT bundle of a trust domain.

        Raises:
            TokenRefused: that trust domain is not trusted.
        """
        ...


@dataclass(frozen=True, slots=True)
class JWTBundleSet:
    """The JWT bundles of several trust domains, kept apart.

    Raises:
        InvalidBundle: two of them are of the same trust domain.
    """

    bundles: tuple[JWTBundle, ...] = ()

    def __post_init__(self) -> None:
        check_distinct(self.bundles)

    @classmethod
    def from_json(cls, text: bytes | str) -> Self:
        """The set in a SPIFFE bundle map (Trust Domain and Bundle, Bundle Map).

        Raises:
            InvalidBundle, InvalidSpiffeID: it is no such map, or a member is damaged. Nothing is taken then (BM-06).
        """
        return cls(tuple(JWTBundle.from_document(name, member) for name, member in members(text)))

    def bundle(self, trust_domain: TrustDomain) -> JWTBundle:
        """The JWT bundle of one trust domain.

        Raises:
            TokenRefused: there is none.
        """
        if (bundle := find(self.bundles, trust_domain)) is None:
            raise _no_bundle(trust_domain)
        return bundle

    def __iter__(self) -> Iterator[JWTBundle]:
        return iter(self.bundles)


def _no_bundle(trust_domain: TrustDomain) -> TokenRefused:
    return TokenRefused(TokenFault.FOREIGN_TRUST_DOMAIN, f"{trust_domain} is not among the trusted domains")
