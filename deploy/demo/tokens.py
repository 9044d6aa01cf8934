"""An issuer of tokens that say on whose behalf a call is made, and the policy by which the backend takes them."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import jwt
from cryptography.hazmat.primitives.asymmetric import ec

_ALGORITHM = "ES256"
_ISSUER = "https://issuer.demo"
_AUDIENCE = "backend"
_KEY_ID = "1"
_LIFE = timedelta(hours=1)
USER_HEADER = "x-user"

# Istio's policy; the keys are in it, so that the demo needs no network.
_POLICY = """\
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata:
  name: users
  namespace: demo
spec:
  jwtRules:
  - issuer: {issuer}
    audiences: [{audience}]
    jwks: '{keys}'
    outputClaimToHeaders:
    - header: {header}
      claim: sub
"""


class Issuer:
    """Signs tokens with a key of its own. Two of them call themselves the same."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())

    def token(self, user: str) -> str:
        """A token for the backend that speaks of this user."""
        now = datetime.now(UTC)
        claims = {"iss": _ISSUER, "aud": _AUDIENCE, "sub": user, "iat": now, "exp": now + _LIFE}
        return jwt.encode(claims, self._key, _ALGORITHM, {"kid": _KEY_ID})

    def policy(self) -> str:
        """The policy that takes its tokens, and tells the application of whom they speak."""
        key = jwt.get_algorithm_by_name(_ALGORITHM).to_jwk(self._key.public_key(), as_dict=True)
        keys = json.dumps({"keys": [{**key, "kid": _KEY_ID, "use": "sig", "alg": _ALGORITHM}]})
        return _POLICY.format(issuer=_ISSUER, audience=_AUDIENCE, keys=keys, header=USER_HEADER)


def bearing(token: str) -> dict[str, str]:
    """The header of a request with this token."""
    return {"authorization": f"Bearer {token}"}
