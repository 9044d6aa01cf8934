"""Which peers are welcome: an authorizer takes a verified SPIFFE ID and returns, or raises `NotAuthorized`.

Every TLS context demands one. An authorizer with nothing in its list refuses everybody. An authorizer is always called
through `admit`, which takes any returned value but None for a refusal. Otherwise a predicate that returns False, or
`is_id` in the place of `is_id(...)`, would let everybody in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from istio_auth.errors import ConfigurationError, NotAuthorized
from istio_auth.spiffe_id import SpiffeID, TrustDomain


class Authorizer(Protocol):
    """Decides whether a peer is welcome. Its SPIFFE ID is proven already."""

    def __call__(self, peer: SpiffeID, /) -> None:
        """Return if the peer is welcome.

        Raises:
            NotAuthorized: it is not.
        """
        ...


def admit(peer: SpiffeID, authorize: Authorizer) -> None:
    """Ask an authorizer about a peer.

    Raises:
        NotAuthorized: the peer is not welcome, or the authorizer returned something else than None.
    """
    ask: Callable[[SpiffeID], object] = authorize  # its type says None, but not everybody checks types
    if (answer := ask(peer)) is not None:
        raise NotAuthorized(
            f"{peer} is refused: the authorizer answered with {type(answer).__name__} {str(answer)[:100]!r}, but must"
            " return None for a welcome peer and raise NotAuthorized for all others"
        )


@dataclass(frozen=True, slots=True)
class _Rule:
    words: str
    welcomes: Callable[[SpiffeID], bool]

    def __call__(self, peer: SpiffeID) -> None:
        if not self.welcomes(peer):
            raise NotAuthorized(f"{peer} is refused: welcome is {self.words}")

    def __str__(self) -> str:
        return self.words


def any_id() -> Authorizer:
    """Everybody whose SPIFFE ID is proven, of every trust domain that is trusted."""
    return _Rule("any SPIFFE ID", lambda _peer: True)


def is_id(expected: SpiffeID) -> Authorizer:
    """Exactly this SPIFFE ID.

    Raises:
        ConfigurationError: a text was given in the place of a `SpiffeID`.
    """
    return one_of(expected)


def one_of(*expected: SpiffeID) -> Authorizer:
    """Exactly these SPIFFE IDs; without any, nobody.

    Raises:
        ConfigurationError: a text was given in the place of a `SpiffeID`.
    """
    _no_text("SpiffeID.parse", expected)
    welcome = frozenset(expected)
    return _Rule(" or ".join(sorted(map(str, welcome))) or "nobody", welcome.__contains__)


def member_of(trust_domain: TrustDomain) -> Authorizer:
    """Every SPIFFE ID of a trust domain.

    Raises:
        ConfigurationError: a text was given in the place of a `TrustDomain`.
    """
    _no_text("TrustDomain", [trust_domain])
    return _Rule(f"any member of {trust_domain}", lambda peer: peer.trust_domain == trust_domain)


def in_namespace(trust_domain: TrustDomain, *namespaces: str) -> Authorizer:
    """Every service account in these namespaces of a trust domain; without any namespace, nobody.

    Raises:
        ConfigurationError: a text was given in the place of a `TrustDomain`.
    """
    _no_text("TrustDomain", [trust_domain])
    welcome = frozenset(namespaces)
    words = f"any service account of {trust_domain} in {' or '.join(sorted(welcome)) or 'no namespace'}"
    return _Rule(words, lambda peer: peer.trust_domain == trust_domain and peer.namespace in welcome)


def _no_text(makes: str, values: Iterable[object]) -> None:
    """Refuse a text in the place of a SPIFFE ID: it equals none, so all would be refused and nobody would see why.

    Raises:
        ConfigurationError: one of the values is a text.
    """
    for value in values:
        if isinstance(value, str):
            raise ConfigurationError(f"an authorizer does not compare with the text {value!r}: give {makes}({value!r})")
