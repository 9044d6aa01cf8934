"""Claims: what a verified token says, typed and immutable, nested values too (RFC 7519 4.1).

All code that handles a request shares them, and they are kept for the next request with the same token. So a change
anywhere in them would change what others are allowed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TypeAlias

from istio_auth.strict_json import JSON
from istio_auth.tokens.fault import TokenFault, TokenRefused

FrozenJSON: TypeAlias = bool | int | float | str | tuple["FrozenJSON", ...] | Mapping[str, "FrozenJSON"] | None

_DEEPEST = 50  # claims are read by recursion, which Python limits
_NESTED = (dict, list)
_NOTHING: Mapping[str, FrozenJSON] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Claims:
    """What a token says: verified, except in a `JWTSVID.of_agent`, which nobody here has verified.

    Args:
        issuer: who issued the token (`iss`); empty if it does not say.
        subject: whom it is about (`sub`); empty if it does not say.
        audiences: whom it is for (`aud`); empty if it does not say.
        expires_at: when it ends (`exp`).
        not_before: when it begins (`nbf`); None if it does not say.
        issued_at: when it was made (`iat`); None if it does not say.
        token_id: its own name (`jti`); empty if it has none.
        members: all claims by name; lists as tuples, objects as mappings that can not be changed.
    """

    issuer: str
    subject: str
    audiences: tuple[str, ...]
    expires_at: datetime
    not_before: datetime | None = None
    issued_at: datetime | None = None
    token_id: str = ""
    members: Mapping[str, FrozenJSON] = field(default_factory=lambda: _NOTHING, repr=False)

    def to_document(self) -> dict[str, JSON]:
        """All claims as a new copy of plain lists and dictionaries, to be written as JSON or changed."""
        return {name: _thawed(value) for name, value in self.members.items()}


def claims_of(payload: Mapping[str, JSON], *, required: Collection[str] = ()) -> Claims:
    """The typed claims of a payload. Nothing is verified here: the caller must have checked the signature.

    Args:
        payload: what the token says.
        required: names of claims that must be there, besides `exp`, which always must.

    Raises:
        TokenRefused: a required claim is missing, or a claim is not of its type or nested too deep.
    """
    if missing := sorted({"exp", *required} - payload.keys()):
        raise TokenRefused(TokenFault.CLAIM, f"it does not say its {', '.join(missing)}")
    expires_at = instant(payload, "exp")
    assert expires_at is not None  # it was needed
    return Claims(
        issuer=_text(payload, "iss"),
        subject=_text(payload, "sub"),
        audiences=_audiences(payload.get("aud", [])),
        expires_at=expires_at,
        not_before=instant(payload, "nbf"),
        issued_at=instant(payload, "iat"),
        token_id=_text(payload, "jti"),
        members=_frozen_members(payload, 0),
    )


def instant(payload: Mapping[str, JSON], name: str) -> datetime | None:
    """The instant of a claim in seconds since 1970, fractions allowed (RFC 7519 2); None if the claim is not there.

    Raises:
        TokenRefused: it is no number, or no date.
    """
    value = payload.get(name)
    if value is None and name not in payload:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TokenRefused(TokenFault.CLAIM, f"its {name!r} is no instant")
    try:
        return datetime.fromtimestamp(value, UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise TokenRefused(TokenFault.CLAIM, f"its {name!r} is no instant") from error


def _text(payload: Mapping[str, JSON], name: str) -> str:
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


def _frozen_members(members: Mapping[str, JSON], depth: int) -> Mapping[str, FrozenJSON]:
    return MappingProxyType({name: _frozen(value, depth) for name, value in members.items()})


def _frozen(value: JSON, depth: int) -> FrozenJSON:
    if not isinstance(value, _NESTED):
        return value
    if depth > _DEEPEST:
        raise TokenRefused(TokenFault.CLAIM, f"a claim is nested more than {_DEEPEST} times")
    if isinstance(value, dict):
        return _frozen_members(value, depth + 1)
    return tuple([_frozen(item, depth + 1) for item in value])


def _thawed(value: FrozenJSON) -> JSON:
    if isinstance(value, Mapping):
        return {name: _thawed(member) for name, member in value.items()}
    return [_thawed(item) for item in value] if isinstance(value, tuple) else value
