"""Where a request may carry a token, and the one token that it carries (RFC 6750 2, Istio's `fromHeaders` and others).

A request speaks on behalf of one token. The same token may stand in several places; two different ones are refused,
whichever of them would be good: what is served first must not depend on who looks first. What stands in other places
than these is nobody's token, and what stands in one of them and is no token is refused when it is verified.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias
from urllib.parse import unquote_plus

from istio_auth.errors import ConfigurationError
from istio_auth.tokens.compact import MAX_TOKEN
from istio_auth.tokens.fault import TokenFault, TokenRefused

_ESCAPED = 3  # characters for one, as `%41`

Headers: TypeAlias = Iterable[tuple[str | bytes, str | bytes]]

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # a token in the sense of RFC 9110 5.6.2


def _check_name(kind: str, name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ConfigurationError(f"{name[:100]!a} is no name of a {kind}")


@dataclass(frozen=True, slots=True)
class InHeader:
    """In a header, after a prefix.

    Args:
        name: of the header; small and capital letters are the same.
        prefix: what the value begins with, letter by letter; a space that belongs to it is part of it.
    """

    name: str
    prefix: str = ""

    def __post_init__(self) -> None:
        _check_name("header", self.name)
        object.__setattr__(self, "name", self.name.lower())

    def __str__(self) -> str:
        return f"header {self.name}"


@dataclass(frozen=True, slots=True)
class InQuery:
    """In a parameter of the query; its name is taken letter by letter."""

    name: str

    def __post_init__(self) -> None:
        if not self.name:
            raise ConfigurationError("a query parameter that carries a token has a name")

    def __str__(self) -> str:
        return f"query parameter {self.name}"


@dataclass(frozen=True, slots=True)
class InCookie:
    """In a cookie; its name is taken letter by letter."""

    name: str

    def __post_init__(self) -> None:
        _check_name("cookie", self.name)

    def __str__(self) -> str:
        return f"cookie {self.name}"


TokenLocation: TypeAlias = InHeader | InQuery | InCookie

DEFAULT_LOCATIONS: tuple[TokenLocation, ...] = (InHeader("Authorization", "Bearer "), InQuery("access_token"))


class FoundToken(NamedTuple):
    """The token of a request, of which nothing is proven, and where it stands."""

    token: str
    locations: frozenset[TokenLocation]


def find_token(locations: Collection[TokenLocation], headers: Headers, query: str | bytes = "") -> FoundToken | None:
    """The one token of a request.

    Args:
        locations: where it may stand.
        headers: the names and values of all headers.
        query: what stands after the question mark of the target, still in its encoding.

    Returns:
        it; None if none of the places has anything in it.

    Raises:
        TokenRefused: there are different ones.
    """
    seen: dict[str, set[TokenLocation]] = {}
    for location, value in (*_in_headers(locations, headers), *_in_query(locations, query)):
        seen.setdefault(value, set()).add(location)
    if len(seen) > 1:
        places = ", ".join(sorted({str(location) for found in seen.values() for location in found}))
        raise TokenRefused(TokenFault.SEVERAL, f"{len(seen)} different ones in one request ({places}): send one")
    return next((FoundToken(token, frozenset(places)) for token, places in seen.items()), None)


def _in_headers(locations: Collection[TokenLocation], headers: Headers) -> Iterator[tuple[TokenLocation, str]]:
    wanted = [location for location in locations if isinstance(location, InHeader)]
    cookies = {location.name: location for location in locations if isinstance(location, InCookie)}
    names = {location.name for location in wanted} | ({"cookie"} if cookies else set())
    for raw_name, raw_value in headers:
        if (name := _text(raw_name).lower()) not in names:
            continue
        value = _text(raw_value)
        for location in wanted:
            if location.name == name and value.startswith(location.prefix) and (rest := value[len(location.prefix) :]):
                yield location, rest
        if name == "cookie":
            yield from ((cookies[cookie], text) for cookie, text in _cookies(value) if cookie in cookies and text)


def _in_query(locations: Collection[TokenLocation], query: str | bytes) -> Iterator[tuple[TokenLocation, str]]:
    wanted = {location.name: location for location in locations if isinstance(location, InQuery)}
    if not wanted or not query:
        return
    longest = _ESCAPED * max(len(name.encode()) for name in wanted)
    for pair in _text(query).split("&"):
        name, _, value = pair.partition("=")
        if not value or len(name) > longest or (location := wanted.get(unquote_plus(name))) is None:
            continue
        if len(value) > _ESCAPED * MAX_TOKEN:  # before it is decoded
            raise TokenRefused(TokenFault.TOO_LONG, f"{len(value)} characters in the {location}")
        yield location, unquote_plus(value)


def _cookies(value: str) -> Iterator[tuple[str, str]]:
    """Names and values of a Cookie header, as RFC 6265 5.4 has browsers write them."""
    for pair in value.split(";"):
        name, _, text = pair.strip().partition("=")
        yield name, text.removeprefix('"').removesuffix('"')


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("latin-1")
