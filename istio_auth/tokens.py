"""A JSON Web Token, the keys of its issuer and the time make Claims, or raise (RFC 7515, RFC 7519, RFC 8725).

What is asked, in this order: a size, three segments in base64url, a header without extensions that must be understood,
an algorithm that the *key* allows, a signature, and only then what the token says: issuer, audience, times. `exp` is
never optional, and `aud` only for who asks for no audience.

A refusal names its reason for the log and holds nothing of the token; strangers hear that they are not authenticated.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import NamedTuple, Self

import jwt

from istio_auth.errors import MalformedError, NotAuthenticated
from istio_auth.jwks import ALGORITHMS, KeySet, VerificationKey, base64url_octets
from istio_auth.strict_json import JSON, parse_json

DEFAULT_LEEWAY = timedelta(minutes=1)  # what Kubernetes and Envoy allow for clocks that differ
MAX_TOKEN = 16 << 10  # characters; those of Kubernetes have one to two thousand


class TokenFault(enum.Enum):
    """Why a token was refused; the label of metrics and the word in log lines."""

    TOO_LONG = "token too long"
    MALFORMED = "malformed"
    EXTENSION = "critical extension"
    HEADER = "forbidden header"
    ALGORITHM = "algorithm"
    FOREIGN_TRUST_DOMAIN = "no bundle for the trust domain"
    UNKNOWN_KEY = "unknown key"
    SIGNATURE = "wrong signature"
    CLAIM = "missing or malformed claim"
    ISSUER = "other issuer"
    AUDIENCE = "other audience"
    EXPIRED = "expired"
    NOT_YET_VALID = "not yet valid"
    LONG_LIVED = "lives too long"


class TokenRefused(NotAuthenticated):
    """A token was refused; `fault` says which rule it broke."""

    def __init__(self, fault: TokenFault, message: str) -> None:
        super().__init__(f"{fault.value}: {message}")
        self.fault = fault
        self._reason = message

    def __reduce__(self) -> tuple[type[Self], tuple[TokenFault, str]]:
        return type(self), (self.fault, self._reason)  # errors may cross to another process of ours


@dataclass(frozen=True, slots=True)
class Claims:
    """What a verified token says. Only a verifier makes these.

    Args:
        issuer: who signed it (`iss`); empty if it does not say.
        subject: whom it speaks of (`sub`); empty if it does not say.
        audiences: whom it is for (`aud`).
        expires_at: when it ends (`exp`).
        not_before: when it begins (`nbf`), if it says.
        issued_at: when it was made (`iat`), if it says.
        token_id: its own name (`jti`); empty if it has none.
        members: everything it says, by name.
    """

    issuer: str
    subject: str
    audiences: tuple[str, ...]
    expires_at: datetime
    not_before: datetime | None = None
    issued_at: datetime | None = None
    token_id: str = ""
    members: Mapping[str, JSON] = field(default_factory=dict, repr=False)


def verify_token(
    token: str,
    keys: KeySet,
    *,
    issuer: str | None,
    audiences: Collection[str] | None,
    now: datetime,
    leeway: timedelta = DEFAULT_LEEWAY,
    required: Collection[str] = (),
    longest_life: timedelta | None = None,
) -> Claims:
    """What a token says, once it is proven.

    Args:
        token: the token, in compact form.
        keys: those of the issuer.
        issuer: what its `iss` must be; None if that does not matter.
        audiences: its `aud` must have one of these, and none fits none of them; None if a token for anybody, or that
            does not say for whom, is welcome.
        now: the instant at which it must be valid.
        leeway: by how much our clock and the issuer's may differ.
        required: names of further claims that must be there.
        longest_life: how long after it was made, or from now, it may end at the latest.

    Raises:
        TokenRefused: it proves nothing; `fault` says why.
    """
    parts = _parts(token)
    _check_signature(parts, keys)
    claims = _claims(parts.payload, required, audience_needed=audiences is not None)
    if issuer is not None and claims.issuer != issuer:
        raise TokenRefused(TokenFault.ISSUER, f"made by {claims.issuer[:200]!a}, not by {issuer!a}")
    if audiences is not None and not set(audiences) & set(claims.audiences):
        meant = ", ".join(f"{audience[:100]!a}" for audience in claims.audiences[:5])
        raise TokenRefused(TokenFault.AUDIENCE, f"for {meant or 'nobody'}, not for {', '.join(sorted(audiences))}")
    _check_times(claims, now, leeway)
    _check_life(claims, now, longest_life)
    return claims


class Unproven(NamedTuple):
    """What a token says of itself; anybody may have written it."""

    header: Mapping[str, JSON]
    payload: Mapping[str, JSON]

    def audiences(self) -> tuple[str, ...]:
        """Whom it says that it is for (`aud`).

        Raises:
            TokenRefused: it says that in no form of the standard.
        """
        return _audiences(self.payload.get("aud", []))

    def expires_at(self) -> datetime | None:
        """When it says that it ends (`exp`), if it does.

        Raises:
            TokenRefused: it says that in no form of the standard.
        """
        return _instant(self.payload, "exp")


def unproven(token: str) -> Unproven:
    """What a token says of itself, of which nothing is proven: good for choosing the keys, never for believing it.

    Raises:
        TokenRefused: it is no token whose header could ever be accepted.
    """
    parts = _parts(token)
    return Unproven(parts.header, _document(parts.payload))


def claimed_end(token: str) -> datetime | None:
    """When a token says that it ends. It proves nothing: good for keeping an answer short, never for giving one.

    Returns:
        the instant; None if the text is no token, or does not say.
    """
    try:
        return unproven(token).expires_at()
    except TokenRefused:
        return None


class _Parts(NamedTuple):
    """A token taken apart; nothing of it is proven."""

    header: dict[str, JSON]
    algorithm: str
    key_id: str | None
    payload: bytes
    signed: bytes
    signature: bytes


_COMPACT = re.compile(r"([\w-]+)\.([\w-]+)\.([\w-]*)", re.ASCII)  # an empty signature fails as a signature


def _parts(token: str) -> _Parts:
    if len(token) > MAX_TOKEN:
        raise TokenRefused(TokenFault.TOO_LONG, f"{len(token)} characters, at most {MAX_TOKEN} are looked at")
    if not (match := _COMPACT.fullmatch(token)):
        raise TokenRefused(TokenFault.MALFORMED, f"{len(token)} characters that are no token in compact form")
    header = _document(_octets(match[1]))
    if "crit" in header:
        raise TokenRefused(TokenFault.EXTENSION, "its header asks for extensions, and none are understood here")
    algorithm, key_id = header.get("alg"), header.get("kid")
    if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
        raise TokenRefused(TokenFault.ALGORITHM, f"{str(algorithm)[:40]!a} is none that is accepted")
    if key_id is not None and not isinstance(key_id, str):
        raise TokenRefused(TokenFault.MALFORMED, "the name of its key is no text")
    signed = token[: match.end(2)].encode()
    return _Parts(header, algorithm, key_id, _octets(match[2]), signed, _octets(match[3]))


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


def _check_signature(parts: _Parts, keys: KeySet) -> None:
    named = keys.keys if parts.key_id is None else keys.named(parts.key_id)
    fitting = [key for key in named if parts.algorithm in key.algorithms]
    if _signed_by_any(parts, fitting):
        return
    if parts.key_id is None:
        raise TokenRefused(TokenFault.UNKNOWN_KEY, "it names no key, and none of its issuer's made its signature")
    name = f"key {parts.key_id[:100]!a}"
    if not named:
        raise TokenRefused(TokenFault.UNKNOWN_KEY, f"its issuer has no {name}")
    if not fitting:
        raise TokenRefused(TokenFault.ALGORITHM, f"{name} is not used with {parts.algorithm}")
    raise TokenRefused(TokenFault.SIGNATURE, f"it is not {name} that made it")


def _signed_by_any(parts: _Parts, keys: Sequence[VerificationKey]) -> bool:
    algorithm = jwt.get_algorithm_by_name(parts.algorithm)
    return any(algorithm.verify(parts.signed, key.public_key, parts.signature) for key in keys)


def _claims(octets: bytes, required: Collection[str], *, audience_needed: bool) -> Claims:
    payload = _document(octets)
    needed = {*required, "exp"} | ({"aud"} if audience_needed else set())
    if missing := sorted(needed - payload.keys()):
        raise TokenRefused(TokenFault.CLAIM, f"it does not say its {', '.join(missing)}")
    expires_at = _instant(payload, "exp")
    assert expires_at is not None  # it was needed
    return Claims(
        issuer=_text(payload, "iss"),
        subject=_text(payload, "sub"),
        audiences=_audiences(payload.get("aud", [])),
        expires_at=expires_at,
        not_before=_instant(payload, "nbf"),
        issued_at=_instant(payload, "iat"),
        token_id=_text(payload, "jti"),
        members=MappingProxyType(payload),
    )


def _text(payload: dict[str, JSON], name: str) -> str:
    value = payload.get(name, "")
    if not isinstance(value, str):
        raise TokenRefused(TokenFault.CLAIM, f"its {name!r} is no text")
    return value


def _audiences(value: JSON) -> tuple[str, ...]:
    """One text or a list of them (RFC 7519 4.1.3)."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list):
        raise TokenRefused(TokenFault.CLAIM, "its 'aud' is neither a text nor a list of texts")
    audiences = tuple(text for text in texts if isinstance(text, str))
    if len(audiences) != len(texts):
        raise TokenRefused(TokenFault.CLAIM, "its 'aud' is neither a text nor a list of texts")
    return audiences


def _instant(payload: Mapping[str, JSON], name: str) -> datetime | None:
    """Seconds since 1970, fractions allowed (RFC 7519 2); None if the claim is not there."""
    value = payload.get(name)
    if value is None and name not in payload:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TokenRefused(TokenFault.CLAIM, f"its {name!r} is no instant")
    try:
        return datetime.fromtimestamp(value, UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise TokenRefused(TokenFault.CLAIM, f"its {name!r} is no instant") from error


def _check_times(claims: Claims, now: datetime, leeway: timedelta) -> None:
    if now - leeway >= claims.expires_at:
        raise TokenRefused(TokenFault.EXPIRED, f"ended {claims.expires_at:%F %T} UTC, now is {now:%F %T}")
    for verb, begin in (("begins", claims.not_before), ("was made", claims.issued_at)):
        if begin is not None and now + leeway < begin:
            raise TokenRefused(
                TokenFault.NOT_YET_VALID, f"{verb} {begin:%F %T} UTC, now is {now:%F %T}: are both clocks right?"
            )


def _check_life(claims: Claims, now: datetime, longest: timedelta | None) -> None:
    if longest is not None and claims.expires_at - (claims.issued_at or now) > longest:
        raise TokenRefused(TokenFault.LONG_LIVED, f"ends {claims.expires_at:%F %T} UTC, which is too far away")
