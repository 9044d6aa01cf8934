"""A JSON Web Token, the keys of its issuer and the time make Claims, or raise (RFC 7515, RFC 7519, RFC 8725).

What is asked, in this order: a size, three segments in base64url, a header without extensions and keys of its own, an
algorithm that is asked for and that the *key* allows, a signature, and only then what the token says: issuer, audience,
times. `exp` is never optional, and `aud` only for who asks for no audience.
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

DEFAULT_LEEWAY = timedelta(minutes=1)  # what Kubernetes and Envoy allow for clocks that differ


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
    """What a token says, once it is proven.

    Args:
        token: the token, in compact form.
        keys: those of the issuer.
        issuer: what its `iss` must be; None if that does not matter.
        audiences: its `aud` must have one of these, and none fits none of them; None if a token for anybody, or that
            does not say for whom, is welcome.
        now: the instant at which it must be valid.
        algorithms: those of which one must have signed it; the key must allow it, too.
        leeway: by how much our clock and the issuer's may differ.
        required: names of further claims that must be there.
        longest_life: how long after it was made, or from now, it may end at the latest.

    Raises:
        TokenRefused: it proves nothing; `fault` says why.
    """
    parts = take_apart(token)
    check_signature(parts, keys, algorithms)
    claims = check_claims(parts.document(), issuer=issuer, audiences=audiences, required=required)
    check_times(claims, now, leeway=leeway, longest_life=longest_life)
    return claims


def check_signature(parts: CompactToken, keys: KeySet, algorithms: Collection[str]) -> None:
    """Find the key that signed a token: the one that it names or one without a name, any if it names none.

    Raises:
        TokenRefused: there is none, or its algorithm is not one of these, or none for that key.
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
    """The claims of a payload whose signature is proven, if it is by this issuer, and for one of these audiences.

    Raises:
        TokenRefused: it is not, or a claim is missing or malformed.
    """
    claims = claims_of(payload, required=required if audiences is None else {*required, "aud"})
    if issuer is not None and claims.issuer != issuer:
        raise TokenRefused(TokenFault.ISSUER, f"made by {claims.issuer[:200]!a}, not by {issuer!a}")
    if audiences is not None and not set(audiences) & set(claims.audiences):
        meant = ", ".join(f"{audience[:100]!a}" for audience in claims.audiences[:5])
        raise TokenRefused(TokenFault.AUDIENCE, f"for {meant or 'nobody'}, not for {', '.join(sorted(audiences))}")
    return claims


def check_times(claims: Claims, now: datetime, *, leeway: timedelta, longest_life: timedelta | None = None) -> None:
    """See whether a token is valid at an instant (RFC 7519 4.1.4 to 4.1.6).

    Raises:
        TokenRefused: it has ended, has not begun, or will end too late.
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
