"""Validates a JWT-SVID against JWT bundles and the time, which gives its SPIFFE ID: JWT-SVID 3 to 5 in one place.

The checks, in this order: the algorithm is one of nine; the header holds nothing but `alg`, `kid` and `typ`; the
subject is a workload's SPIFFE ID; a key in the bundle of *that* trust domain alone made the signature; and then the
audience and the times. Bundles are never pooled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Self

from istio_auth.errors import ConfigurationError, InvalidSpiffeID
from istio_auth.jwks import ALGORITHMS
from istio_auth.jwt_bundle import JWTBundleSource
from istio_auth.spiffe_id import SpiffeID
from istio_auth.strict_json import JSON
from istio_auth.tokens import DEFAULT_LEEWAY, Claims, TokenFault, TokenRefused, unproven, verify_token
from istio_auth.tokens.claims import claims_of

_HEADER = {"alg", "kid", "typ"}  # a closed set (JW-02)
_TYPES = ("JWT", "JOSE")


@dataclass(frozen=True, slots=True)
class JWTSVID:
    """A SPIFFE ID with the token that proves it to an audience.

    Args:
        id: the SPIFFE ID, the same as the token's `sub`.
        claims: what the token says.
        token: the token itself, in compact form. To the audience, whoever has it is the workload. Never printed.
        hint: a name by which a workload with several identities picks one (Workload API 6.2.1).
    """

    id: SpiffeID
    claims: Claims = field(repr=False, compare=False)  # the token says the same
    token: str = field(repr=False)
    hint: str = ""

    @property
    def audiences(self) -> tuple[str, ...]:
        """Whom the token is for; never empty."""
        return self.claims.audiences

    @property
    def expires_at(self) -> datetime:
        """When the token ends."""
        return self.claims.expires_at

    @classmethod
    def of_agent(cls, token: str, *, hint: str = "") -> Self:
        """A JWT-SVID that our own agent gave us, read but not verified: its audience will verify it.

        Raises:
            TokenRefused: it is no JWT-SVID.
        """
        said = unproven(token)
        _check_header(said.header)
        spiffe_id = _subject(said.payload)
        claims = claims_of(dict(said.payload))
        if not claims.audiences:
            raise TokenRefused(TokenFault.CLAIM, "it is for nobody (JW-07)")
        return cls(spiffe_id, claims, token, hint)


def validate_jwt_svid(
    token: str, bundles: JWTBundleSource, *, audience: str, now: datetime, leeway: timedelta = DEFAULT_LEEWAY
) -> JWTSVID:
    """Validate a JWT-SVID that somebody showed us.

    Args:
        token: the token, as it came with a request.
        bundles: the JWT bundles of the trusted domains; the one of the subject's trust domain is used.
        audience: who we are; the token must be for us.
        now: the instant at which it must be valid.
        leeway: by how much our clock and the issuer's may differ.

    Raises:
        TokenRefused: it proves nothing; `fault` says why.
        ConfigurationError: the audience is empty.
    """
    if not audience:
        raise ConfigurationError("a JWT-SVID is validated for an audience, and none was named")
    said = unproven(token)
    _check_header(said.header)
    spiffe_id = _subject(said.payload)
    keys = bundles.bundle(spiffe_id.trust_domain).keys
    claims = verify_token(token, keys, issuer=None, audiences=(audience,), now=now, leeway=leeway)
    return JWTSVID(spiffe_id, claims, token)


def _check_header(header: Mapping[str, JSON]) -> None:
    if (algorithm := header["alg"]) not in ALGORITHMS:  # before anything else is looked at (JW-10)
        raise TokenRefused(TokenFault.ALGORITHM, f"{algorithm!a} is none of those of JWT-SVIDs (JW-03)")
    if others := sorted(header.keys() - _HEADER):
        shown = ", ".join(f"{name[:40]!a}" for name in others[:5])
        raise TokenRefused(TokenFault.HEADER, f"a JWT-SVID has no header {shown} (JW-02)")
    if "typ" in header and header["typ"] not in _TYPES:
        raise TokenRefused(TokenFault.HEADER, f"its typ is {str(header['typ'])[:40]!a}, not JWT or JOSE (JW-05)")


def _subject(payload: Mapping[str, JSON]) -> SpiffeID:
    subject = payload.get("sub")
    if not isinstance(subject, str):
        raise TokenRefused(TokenFault.CLAIM, "its sub is missing or no text (JW-06)")
    try:
        spiffe_id = SpiffeID.parse(subject)
    except InvalidSpiffeID as error:
        raise TokenRefused(TokenFault.CLAIM, f"its sub: {error}") from error
    if not spiffe_id.path:
        raise TokenRefused(TokenFault.CLAIM, f"its sub {spiffe_id} names a trust domain, not a workload (JW-06)")
    return spiffe_id
