"""JWTRule: one issuer whose tokens a workload accepts, where a request may carry them, and what is done with claims.

The fields and the rules of validation are those of Istio's RequestAuthentication. Three things are refused here that
would fail silently or be dangerous there: an inline key set without a usable key, keys at a link-local or metadata
address, and claims copied to a header that says who calls or how a message is framed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import NamedTuple
from urllib.parse import SplitResult, urlsplit

from istio_auth.errors import ConfigurationError, MalformedError

_MAX_URI = 2048
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 5.6.2
_OUTPUT_HEADER = re.compile(r"[-_A-Za-z0-9]+")
_TAKEN = frozenset({"x-forwarded-client-cert", "host", "connection", "content-length", "te", "trailer"})
_TAKEN |= {"transfer-encoding", "upgrade", "keep-alive"}
_METADATA = frozenset({"metadata", "metadata.google.internal"})  # names of metadata services, where no keys are fetched


class JWTHeader(NamedTuple):
    """A header that may hold a token after a prefix. The prefix is literal, including a space at its end."""

    name: str
    prefix: str = ""


class ClaimToHeader(NamedTuple):
    """A claim, by its dotted path, that is copied to a header for the application."""

    header: str
    claim: str


class Places(NamedTuple):
    """Where a request may carry its token."""

    headers: tuple[JWTHeader, ...]
    params: tuple[str, ...]
    cookies: tuple[str, ...]


DEFAULT_PLACES = Places((JWTHeader("Authorization", "Bearer "),), ("access_token",), ())


@dataclass(frozen=True, slots=True)
class JWTRule:
    """One issuer whose tokens are accepted.

    Args:
        issuer: what a token's `iss` must be; if empty, any `iss` is accepted that a key at `jwks_uri` has signed.
        audiences: a token must be for one of these; if empty, it may be for anybody.
        jwks: the issuer's key set itself, as JSON; not with `jwks_uri`.
        jwks_uri: where the key set is. Without it and `jwks`, the issuer must be an https URL, and its discovery
            document says where (OpenID Connect Discovery 4).
        from_headers, from_params, from_cookies: where to look for a token; if all are empty, the default places.
        forward_original_token: whether the application gets the token too.
        output_payload_to_header: the header in which the application gets the payload, in base64url; empty for none.
        output_claim_to_headers: claims that the application gets in headers.
        space_delimited_claims: claims to read as a list of words, beside `scope` and `permission`.
        timeout: how long fetching the key set may take; None for the default of 5 s.

    Raises:
        ConfigurationError: a field is not valid, or fields do not fit together.
    """

    issuer: str = ""
    audiences: tuple[str, ...] = ()
    jwks: str = field(default="", repr=False)
    jwks_uri: str = ""
    from_headers: tuple[JWTHeader, ...] = ()
    from_params: tuple[str, ...] = ()
    from_cookies: tuple[str, ...] = ()
    forward_original_token: bool = False
    output_payload_to_header: str = ""
    output_claim_to_headers: tuple[ClaimToHeader, ...] = ()
    space_delimited_claims: tuple[str, ...] = ()
    timeout: timedelta | None = None

    def __post_init__(self) -> None:
        if not self.issuer and not self.jwks_uri:
            raise ConfigurationError("issuer or jwksUri must be set")
        if self.jwks and self.jwks_uri:
            raise ConfigurationError("jwks and jwksUri exclude each other: keep one")
        if self.jwks:
            _check_key_set(self.jwks)
        elif self.jwks_uri:
            parse_key_uri(self.jwks_uri, "jwksUri")
        elif not self.issuer.startswith("https://"):
            raise ConfigurationError("without jwks and jwksUri the issuer must be an https URL: it says where keys are")
        _check_places(self)
        _check_outputs(self)

    @property
    def places(self) -> Places:
        """Where a request may carry a token of this issuer: the rule's places, or the default ones if it has none."""
        told = Places(self.from_headers, self.from_params, self.from_cookies)
        return told if any(told) else DEFAULT_PLACES

    @property
    def output_headers(self) -> tuple[str, ...]:
        """The headers that only a verified token may set."""
        payload = (self.output_payload_to_header,) if self.output_payload_to_header else ()
        return payload + tuple(output.header for output in self.output_claim_to_headers)


def parse_key_uri(text: str, what: str) -> SplitResult:
    """The parts of a URI from which keys are fetched.

    Args:
        text: the URI.
        what: what it is, for the message of an error.

    Raises:
        ConfigurationError: it is no http or https URI with a host, or keys are never fetched from there.
    """
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigurationError(f"{what}: {text[:200]!r} is no URI: {error}") from error
    if parts.scheme not in ("http", "https"):
        raise ConfigurationError(f"{what}: {text[:200]!r} has neither scheme https nor http")
    if not host or port == 0 or not text.isascii() or not text.isprintable() or " " in text or len(text) > _MAX_URI:
        raise ConfigurationError(f"{what}: {text[:200]!r} is no URI with a host, of at most {_MAX_URI} characters")
    if "@" in parts.netloc or parts.fragment:
        raise ConfigurationError(f"{what}: take the user, password or fragment out of the URI")
    if reason := _why_not_there(host):
        raise ConfigurationError(f"{what}: {reason}")
    return parts


def _why_not_there(host: str) -> str:
    from istio_auth.tokens.addresses import why_not_dialled  # see _check_key_set

    if host.rstrip(".") in _METADATA:
        return f"{host} is the name of a metadata service, where no keys are fetched"
    is_address = ":" in host or host.replace(".", "").isdigit()
    return why_not_dialled(host, allow_loopback=True) if is_address else ""


def _check_key_set(text: str) -> None:
    from istio_auth.jwks import KeySet  # not at the top: only rules with a key set need the library for tokens

    try:
        keys = KeySet.from_json(text)
    except MalformedError as error:
        raise ConfigurationError(f"jwks: {error}") from error
    if not keys.keys:
        reasons = "; ".join(keys.left_out[:3]) or "it is empty"
        raise ConfigurationError(f"jwks: no key of the set can be used, so no token could be taken: {reasons}")


def _check_places(rule: JWTRule) -> None:
    for name in (*(header.name for header in rule.from_headers), *rule.from_cookies):
        if not _TOKEN.fullmatch(name):
            raise ConfigurationError(f"{name[:60]!r} is no name of a header or cookie")
    for text in (*(header.prefix for header in rule.from_headers), *rule.from_params):
        if not text.isprintable():
            raise ConfigurationError(f"{text[:60]!r} holds characters that a request can not have there")


def _check_outputs(rule: JWTRule) -> None:
    for header in rule.output_headers:
        if not _OUTPUT_HEADER.fullmatch(header):
            raise ConfigurationError(f"{header[:60]!r}: a header for claims has a name of letters, digits, '-' and '_'")
        if plain_header(header) in _TAKEN:
            raise ConfigurationError(f"{header} has a meaning of its own, which no token may change: take another")
    if repeated := repeated_header(rule.output_headers):
        raise ConfigurationError(f"{repeated} is filled twice: give each claim a header of its own")


def plain_header(name: str) -> str:
    """A header's name in small letters with '-' for '_', since frameworks make no difference between the two."""
    return name.lower().replace("_", "-")


def repeated_header(names: Iterable[str]) -> str:
    """A name that occurs twice, in any spelling (see `plain_header`); empty if none does."""
    return next((name for name, count in Counter(map(plain_header, names)).items() if count > 1), "")
