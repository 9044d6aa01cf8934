"""A token in compact form is taken apart, and nothing of it is believed (RFC 7515 7.1, RFC 8725).

Sizes are looked at before anything is decoded, and a header is refused here that could never be accepted, whatever the
keys: one with an algorithm that is no public-key signature (`none`, and all that share a secret), with extensions that
must be understood, or with a key of the token's own, or directions to one.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from datetime import datetime
from types import MappingProxyType
from typing import NamedTuple

from istio_auth.errors import MalformedError
from istio_auth.jwks import EVERY_ALGORITHM, base64url_octets
from istio_auth.strict_json import JSON, parse_json
from istio_auth.tokens.claims import instant
from istio_auth.tokens.fault import TokenFault, TokenRefused

MAX_TOKEN = 16 << 10  # characters; those of Kubernetes have one to two thousand
_USUAL_HEADER = 256  # characters, of those that are kept

_COMPACT = re.compile(r"([\w-]+)\.([\w-]+)\.([\w-]*)", re.ASCII)  # an empty signature fails as a signature
EXTENSIONS = frozenset({"crit", "b64"})  # RFC 7515 4.1.11; RFC 7797 changes what is signed
OWN_KEYS = frozenset({"jwk", "jku", "x5u", "x5c", "jwks"})  # a token that says whom to believe


class CompactToken(NamedTuple):
    """A token taken apart; nothing of it is proven."""

    header: Mapping[str, JSON]
    algorithm: str
    key_id: str | None
    payload: bytes
    signed: bytes
    signature: bytes

    def document(self) -> dict[str, JSON]:
        """What it says, if that is a JSON object.

        Raises:
            TokenRefused: it is none.
        """
        return _document(self.payload)


class Unproven(NamedTuple):
    """What a token says of itself; anybody may have written it."""

    header: Mapping[str, JSON]
    payload: Mapping[str, JSON]


def take_apart(token: str) -> CompactToken:
    """The parts of a token.

    Raises:
        TokenRefused: it is too long, no token in compact form, or its header could never be accepted.
    """
    if len(token) > MAX_TOKEN:
        raise TokenRefused(TokenFault.TOO_LONG, f"{len(token)} characters, at most {MAX_TOKEN} are looked at")
    if not (match := _COMPACT.fullmatch(token)):
        raise TokenRefused(TokenFault.MALFORMED, _no_compact_form(token))
    head, payload, signature = match.groups()
    header = _known_header(head) if len(head) <= _USUAL_HEADER else _header(head)
    signed = token[: match.end(2)].encode()
    return CompactToken(*header, _octets(payload), signed, _octets(signature))


def unproven(token: str) -> Unproven:
    """What a token says of itself, of which nothing is proven: good for choosing the keys, never for believing it.

    Raises:
        TokenRefused: it is no token whose header could ever be accepted.
    """
    parts = take_apart(token)
    return Unproven(parts.header, parts.document())


def claimed_end(token: str) -> datetime | None:
    """When a token says that it ends. It proves nothing: good for keeping an answer short, never for giving one.

    Returns:
        the instant; None if the text is no token, or does not say.
    """
    try:
        return instant(take_apart(token).document(), "exp")
    except TokenRefused:
        return None


class _Header(NamedTuple):
    members: Mapping[str, JSON]
    algorithm: str
    key_id: str | None


def _header(segment: str) -> _Header:
    header = _document(_octets(segment))
    if EXTENSIONS & header.keys():
        raise TokenRefused(TokenFault.EXTENSION, "its header asks for extensions, and none are understood here")
    if own := sorted(OWN_KEYS & header.keys()):
        raise TokenRefused(TokenFault.HEADER, f"it says itself which key is to be believed ({', '.join(own)})")
    algorithm, key_id = header.get("alg"), header.get("kid")
    if not isinstance(algorithm, str) or algorithm not in EVERY_ALGORITHM:
        raise TokenRefused(TokenFault.ALGORITHM, f"{str(algorithm)[:40]!a} is none that is accepted")
    if key_id is not None and not isinstance(key_id, str):
        raise TokenRefused(TokenFault.MALFORMED, "the name of its key is no text")
    return _Header(MappingProxyType(header), algorithm, key_id)


# All tokens that were signed with one key have the same header. What is long, or refused, is not kept.
_known_header = functools.lru_cache(maxsize=64)(_header)


def _no_compact_form(token: str) -> str:
    if token.lstrip()[:1] == "{":
        return "in JSON serialization, and only the compact form is accepted"
    if token.count(".") == 4:
        return "an encrypted token, and only signed ones are accepted"
    return f"{len(token)} characters that are no token in compact form"


def _octets(segment: str) -> bytes:
    try:
        return base64url_octets(segment)
    except MalformedError as error:
        raise TokenRefused(TokenFault.MALFORMED, f"a segment is {error}") from error


def _document(octets: bytes) -> dict[str, JSON]:
    try:
        document = parse_json(octets, limit=MAX_TOKEN)
    except MalformedError as error:
        raise TokenRefused(TokenFault.MALFORMED, f"a segment is {error}") from error
    if not isinstance(document, dict):
        raise TokenRefused(TokenFault.MALFORMED, "a segment is no JSON object")
    return document
