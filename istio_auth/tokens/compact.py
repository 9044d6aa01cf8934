"""Takes a token in compact form apart, without verifying it (RFC 7515 7.1, RFC 8725).

Sizes are checked before anything is decoded. A header that can not be accepted with any keys is refused here: one with
an algorithm that is no public-key signature (`none`, and all with a shared secret), with extensions that must be
understood, or with a key of the token's own or a link to one.
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

MAX_TOKEN = 16 << 10  # characters; a token of Kubernetes has one to two thousand
_USUAL_HEADER = 256  # characters; longer headers are not cached

_COMPACT = re.compile(r"([\w-]+)\.([\w-]+)\.([\w-]*)", re.ASCII)  # an empty signature is refused later, as a wrong one
EXTENSIONS = frozenset({"crit", "b64"})  # RFC 7515 4.1.11; RFC 7797 changes what is signed
OWN_KEYS = frozenset({"jwk", "jku", "x5u", "x5c", "jwks"})  # by these a token would name the key to verify it with


class CompactToken(NamedTuple):
    """The parts of a token; nothing is verified."""

    header: Mapping[str, JSON]
    algorithm: str
    key_id: str | None
    payload: bytes
    signed: bytes
    signature: bytes

    def document(self) -> dict[str, JSON]:
        """The payload as a JSON object.

        Raises:
            TokenRefused: it is no JSON object.
        """
        return _document(self.payload)


class Unproven(NamedTuple):
    """The header and payload of a token that is not verified; anybody may have written them."""

    header: Mapping[str, JSON]
    payload: Mapping[str, JSON]


def take_apart(token: str) -> CompactToken:
    """The parts of a token.

    Raises:
        TokenRefused: it is too long, no token in compact form, or its header is never accepted.
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
    """The header and payload of a token, not verified: use them to choose the keys, but do not believe them.

    Raises:
        TokenRefused: it is no token, its header is never accepted, or its payload is no JSON object.
    """
    parts = take_apart(token)
    return Unproven(parts.header, parts.document())


def claimed_end(token: str) -> datetime | None:
    """When a token ends by its own claim, not verified: use it to bound how long to keep an answer about the token.

    Returns:
        the instant; None if the text is no token, or has no valid `exp`.
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


# All tokens that one key signed have the same header. Long headers, and refused ones, are not cached.
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
