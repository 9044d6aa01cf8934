"""Reads SPIFFE bundles and bundle maps as JSON, and has the rules of a set of bundles, for all kinds of keys.

Trust Domain and Bundle 4, Bundle Map. Bundles are looked up by the *peer's* trust domain and never pooled: a key of one
domain can not vouch for a name of another (Federation 7.3).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

from istio_auth.errors import InvalidBundle, MalformedError
from istio_auth.spiffe_id import TrustDomain
from istio_auth.strict_json import JSON, parse_json

_MAX_BYTES = 4 << 20


class OfTrustDomain(Protocol):
    """A bundle of any kind."""

    @property
    def trust_domain(self) -> TrustDomain:
        """Whose it is."""
        ...


_Bundle = TypeVar("_Bundle", bound=OfTrustDomain)


def load(text: bytes | str) -> JSON:
    """The document in a text.

    Raises:
        InvalidBundle: it is no JSON, or too large.
    """
    try:
        return parse_json(text, limit=_MAX_BYTES)
    except MalformedError as error:
        raise InvalidBundle(f"a SPIFFE bundle can not be read: {error}") from error


def members(text: bytes | str) -> Iterator[tuple[TrustDomain, JSON]]:
    """The bundle documents in a bundle map.

    Raises:
        InvalidBundle: it is no such map.
        InvalidSpiffeID: a name in it is no trust domain's; raised when that member is reached.
    """
    document = load(text)
    if not isinstance(document, dict) or not isinstance(domains := document.get("trust_domains"), dict):
        raise InvalidBundle("a SPIFFE bundle map is a JSON object with an object 'trust_domains'")
    return ((TrustDomain(name), member) for name, member in domains.items())


def check_distinct(bundles: Iterable[OfTrustDomain]) -> None:
    """Check that a set holds each trust domain once.

    Raises:
        InvalidBundle: it does not.
    """
    names = [bundle.trust_domain for bundle in bundles]
    if len(set(names)) != len(names):
        raise InvalidBundle("a bundle set holds each trust domain once")


def find(bundles: Iterable[_Bundle], trust_domain: TrustDomain) -> _Bundle | None:
    """The bundle of a trust domain, if it is among these."""
    return next((bundle for bundle in bundles if bundle.trust_domain == trust_domain), None)
