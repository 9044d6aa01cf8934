"""Where a request may carry a token, and the one token that it carries (RFC 6750 2, Istio's `fromHeaders` and others).

A request has one token, in one place (RFC 6750 2). One with several is refused, even if one of them is valid: on whose
behalf it is made must not depend on which place a reader tries first. A text in any other place is not looked at. A
text in one of these places that is no token is refused when it is verified.
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

_ESCAPED = 3  # characters for one that is escaped, as `%41`

Headers: TypeAlias = Iterable[tuple[str | bytes, str | bytes]]

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # a token in the sense of RFC 9110 5.6.2


def _check_name(kind: str, name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ConfigurationError(f"{name[:100]!a} is no name of a {kind}")


@dataclass(frozen=True, slots=True)
class InHeader:
    """In a header, after a prefix.

    Args:
        name: the name of the header, in capital or small letters.
        prefix: what the value begins with, exactly, including a space at its end.

    Raises:
        ConfigurationError: this is no name of a header.
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
    """In a parameter of the query, whose name is compared exactly.

    Raises:
        ConfigurationError: the name is empty.
    """

    name: str

    def __post_init__(self) -> None:
        if not self.name:
            raise ConfigurationError("a query parameter that carries a token has a name")

    def __str__(self) -> str:
        return f"query parameter {self.name}"


@dataclass(frozen=True, slots=True)
class InCookie:
    """In a cookie, whose name is compared exactly.

    Raises:
        ConfigurationError: this is no name of a cookie.
    """

    name: str

    def __post_init__(self) -> None:
        _check_name("cookie", self.name)

    def __str__(self) -> str:
        return f"cookie {self.name}"


TokenLocation: TypeAlias = InHeader | InQuery | InCookie

DEFAULT_LOCATIONS: tuple[TokenLocation, ...] = (InHeader("Authorization", "Bearer "), InQuery("access_token"))


class FoundToken(NamedTuple):
    """The token of a request, not verified, and where it was found."""

    token: str
    location: TokenLocation


def find_token(locations: Collection[TokenLocation], headers: Headers, query: str | bytes = "") -> FoundToken | None:
    """The one token of a request.

    Args:
        locations: where it may be.
        headers: the names and values of all headers.
        query: the query string without `?`, not decoded.

    Returns:
        the token; None if none of the places has anything in it.

    Raises:
        TokenRefused: there are several tokens, one is too long, or a header has a prefix with wrong capital or small
            letters.
    """
    found = [*_in_headers(locations, headers), *_in_query(locations, query)]
    if len(found) > 1:
        places = ", ".join(sorted(str(one.location) for one in found[:5]))
        raise TokenRefused(TokenFault.SEVERAL, f"{len(found)} in one request ({places}): send one, in one place")
    return found[0] if found else None


def _in_headers(locations: Collection[TokenLocation], headers: Headers) -> Iterator[FoundToken]:
    wanted = [location for location in locations if isinstance(location, InHeader)]
    cookies = {location.name: location for location in locations if isinstance(location, InCookie)}
    names = {location.name for location in wanted} | ({"cookie"} if cookies else set())
    for raw_name, raw_value in headers:
        if (name := _text(raw_name).lower()) not in names:
            continue
        value = _text(raw_value)
        yield from _after_prefix([location for location in wanted if location.name == name], value)
        if name == "cookie":
            yield from (FoundToken(text, cookies[one]) for one, text in _cookies(value) if one in cookies and text)


def _after_prefix(locations: Collection[InHeader], value: str) -> Iterator[FoundToken]:
    """What follows the longest prefix that fits: with each shorter one the same value would be another token."""
    for location in sorted(locations, key=lambda one: len(one.prefix), reverse=True):
        start = value[: len(location.prefix)]
        if start == location.prefix:
            if rest := value[len(start) :]:
                yield FoundToken(rest, location)
            return
        if start.lower() == location.prefix.lower():  # others may take it for a token, so it is not ignored
            raise TokenRefused(
                TokenFault.MALFORMED, f"the {location} does not have {location.prefix!a} letter by letter"
            )


def _in_query(locations: Collection[TokenLocation], query: str | bytes) -> Iterator[FoundToken]:
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
        yield FoundToken(unquote_plus(value), location)


def _cookies(value: str) -> Iterator[tuple[str, str]]:
    """Names and values of a Cookie header, as browsers write it (RFC 6265 5.4)."""
    for pair in value.split(";"):
        name, _, text = pair.strip().partition("=")
        yield name, text.removeprefix('"').removesuffix('"')


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("latin-1")
