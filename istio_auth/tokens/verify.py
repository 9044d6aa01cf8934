"""Verifies a JSON Web Token with its issuer's keys and the time, which gives Claims (RFC 7515, RFC 7519, RFC 8725).

The checks, in this order: the size; three segments in base64url; a header without extensions and without keys of its
own; an algorithm that the caller and the *key* allow; the signature; and only then the claims: issuer, audience, times.
`exp` is always required, and `aud` too unless the caller takes tokens for anybody.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta

import jwt

from istio_auth.jwks import ALGORITHMS, KeySet, VerificationKey
from istio_auth.strict_json import JSON
from istio_auth.tokens.claims import Claims, claims_of
from istio_auth.tokens.compact import CompactToken, take_apart
from istio_auth.tokens.fault import TokenFault, TokenRefused

DEFAULT_LEEWAY = timedelta(minutes=1)  # the difference of clocks that Kubernetes and Envoy allow


def verify_token(
    token: str,
    keys: KeySet,
    *,
    issuer: str | None,
    audiences: Collection[str] | None,
    now: datetime,
    algorithms: Collection[str] = ALGORITHMS,
    leeway: timedelta = DEFAULT_LEEWAY,
    required: Collection[str] = (),
    longest_life: timedelta | None = None,
) -> Claims:
    """Verify a token, and return its claims.

    Args:
        token: the token, in compact form.
        keys: the keys of the issuer.
        issuer: what its `iss` must be; None if that does not matter.
        audiences: its `aud` must have one of these; an empty collection accepts no token. None accepts a token for
            anybody, also one without `aud`.
        now: the instant at which it must be valid.
        algorithms: the algorithms that it may be signed with; the key must allow the algorithm too.
        leeway: how much our clock and the issuer's may differ.
        required: names of claims that must be there, besides `exp`, and `aud` if there are audiences.
        longest_life: it may end at most this long after its `iat`, or after now if it has none; None for no limit.

    Raises:
        TokenRefused: it proves nothing; `fault` says why.
    """
    parts = take_apart(token)
    check_signature(parts, keys, algorithms)
    claims = check_claims(parts.document(), issuer=issuer, audiences=audiences, required=required)
    check_times(claims, now, leeway=leeway, longest_life=longest_life)
    return claims


def check_signature(parts: CompactToken, keys: KeySet, algorithms: Collection[str]) -> None:
    """Check that one of the keys signed a token.

    If the token names a key, the keys with that name are tried, or those without a name if there are none; else all.

    Raises:
        TokenRefused: none of them did, or the algorithm is not among these, or not allowed for that key.
    """
    if parts.algorithm not in algorithms:
        raise TokenRefused(TokenFault.ALGORITHM, f"{parts.algorithm} is none of {', '.join(sorted(algorithms))}")
    candidates = keys.keys if parts.key_id is None else keys.named(parts.key_id) or keys.named("")
    fitting = [key for key in candidates if parts.algorithm in key.algorithms]
    if _signed_by_any(parts, fitting):
        return
    if parts.key_id is None:
        raise TokenRefused(TokenFault.UNKNOWN_KEY, "it names no key, and none of its issuer's made its signature")
    name = f"key {parts.key_id[:100]!a}"
    if not keys.named(parts.key_id):
        raise TokenRefused(TokenFault.UNKNOWN_KEY, f"its issuer has no {name}")
    if not fitting:
        raise TokenRefused(TokenFault.ALGORITHM, f"{name} is not used with {parts.algorithm}")
    raise TokenRefused(TokenFault.SIGNATURE, f"it is not {name} that made it")


def check_claims(
    payload: Mapping[str, JSON],
    *,
    issuer: str | None,
    audiences: Collection[str] | None,
    required: Collection[str] = (),
) -> Claims:
    """The claims of a payload whose signature is verified, if this issuer made it, for one of these audiences.

    Raises:
        TokenRefused: another issuer made it, it is for another audience, or a claim is missing or malformed.
    """
    claims = claims_of(payload, required=required if audiences is None else {*required, "aud"})
    if issuer is not None and claims.issuer != issuer:
        raise TokenRefused(TokenFault.ISSUER, f"made by {claims.issuer[:200]!a}, not by {issuer!a}")
    if audiences is not None and not set(audiences) & set(claims.audiences):
        meant = ", ".join(f"{audience[:100]!a}" for audience in claims.audiences[:5])
        raise TokenRefused(TokenFault.AUDIENCE, f"for {meant or 'nobody'}, not for {', '.join(sorted(audiences))}")
    return claims


def check_times(claims: Claims, now: datetime, *, leeway: timedelta, longest_life: timedelta | None = None) -> None:
    """Check that a token is valid at an instant (RFC 7519 4.1.4 to 4.1.6).

    Raises:
        TokenRefused: it has ended, has not begun, or lives too long.
    """
    if now - leeway >= claims.expires_at:
        raise TokenRefused(TokenFault.EXPIRED, f"ended {claims.expires_at:%F %T} UTC, now is {now:%F %T}")
    for verb, begin in (("begins", claims.not_before), ("was made", claims.issued_at)):
        if begin is not None and now + leeway < begin:
            raise TokenRefused(
                TokenFault.NOT_YET_VALID, f"{verb} {begin:%F %T} UTC, now is {now:%F %T}: are both clocks right?"
            )
    if longest_life is not None and claims.expires_at - (claims.issued_at or now) > longest_life:
        raise TokenRefused(TokenFault.LONG_LIVED, f"ends {claims.expires_at:%F %T} UTC, which is too far away")


def _signed_by_any(parts: CompactToken, keys: Sequence[VerificationKey]) -> bool:
    algorithm = jwt.get_algorithm_by_name(parts.algorithm)
    return any(algorithm.verify(parts.signed, key.public_key, parts.signature) for key in keys)
