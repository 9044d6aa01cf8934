"""An issuer of tokens with a real key, who signs whatever a test wants, well formed or not."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from collections.abc import Mapping
from datetime import datetime, timedelta

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from istio_auth.jwks import KeySet
from istio_auth.strict_json import JSON

CLUSTER = "https://kubernetes.default.svc.cluster.local"
AUDIENCE = "istio-ca"
HOUR = timedelta(hours=1)
_CURVES = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}


@functools.cache
def new_signing_key(
    algorithm: str, place: int = 0
) -> ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey:
    """A key that signs with this algorithm; for each place another one."""
    if algorithm in _CURVES:
        return ec.generate_private_key(_CURVES[algorithm])
    return ed25519.Ed25519PrivateKey.generate() if algorithm == "EdDSA" else rsa.generate_private_key(65537, 2048)


def base64url(octets: bytes) -> str:
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()


class TokenIssuer:
    """Signs tokens as the API server does, and publishes its key as the API server does."""

    def __init__(self, algorithm: str = "ES256", *, place: int = 0, issuer: str = CLUSTER) -> None:
        family = algorithm if algorithm in _CURVES or algorithm == "EdDSA" else "RS256"
        self.key = new_signing_key(family, place)
        self.algorithm = algorithm
        self.issuer = issuer
        self.public_der = self.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        self.key_id = base64url(hashlib.sha256(self.public_der).digest())

    def jwk(self, **changes: JSON) -> dict[str, JSON]:
        """The entry of its key; a change to None takes a member out."""
        made = jwt.get_algorithm_by_name(self.algorithm).to_jwk(self.key.public_key(), as_dict=True)
        made |= {"use": "sig", "kid": self.key_id, "alg": self.algorithm}
        made.pop("key_ops", None)
        return {name: value for name, value in (made | changes).items() if value is not None}

    def jwks(self, **changes: JSON) -> str:
        return json.dumps({"keys": [self.jwk(**changes)]})

    def keys(self, **changes: JSON) -> KeySet:
        return KeySet.from_json(self.jwks(**changes))

    def sign(
        self,
        payload: Mapping[str, JSON] | bytes,
        *,
        header: Mapping[str, JSON] | bytes | None = None,
        with_algorithm: str = "",
    ) -> str:
        """A token, signed whatever its header says; a change of the header to None takes that out."""
        usual: dict[str, JSON] = {"alg": self.algorithm, "kid": self.key_id}
        if not isinstance(header, bytes):
            header = _text({name: value for name, value in (usual | dict(header or {})).items() if value is not None})
        octets = payload if isinstance(payload, bytes) else _text(payload)
        signed = f"{base64url(header)}.{base64url(octets)}"
        algorithm = jwt.get_algorithm_by_name(with_algorithm or self.algorithm)
        return f"{signed}.{base64url(algorithm.sign(signed.encode(), self.key))}"

    def payload(self, now: datetime, **changes: JSON) -> dict[str, JSON]:
        """The claims of a token of `default/web` for us, bound to a pod; a change to None takes a claim out."""
        begin = int(now.timestamp())
        made: dict[str, JSON] = {
            "iss": self.issuer,
            "sub": "system:serviceaccount:default:web",
            "aud": [AUDIENCE],
            "iat": begin,
            "nbf": begin,
            "exp": begin + int(HOUR.total_seconds()),
            "jti": "5a0d3f6e-0000-4000-8000-000000000001",
            "kubernetes.io": bound(),
        }
        return {name: value for name, value in (made | changes).items() if value is not None}

    def token(self, now: datetime, **changes: JSON) -> str:
        return self.sign(self.payload(now, **changes))


def bound(**changes: JSON) -> dict[str, JSON]:
    """What a token says of Kubernetes: the service account, its pod and the pod's node."""
    made: dict[str, JSON] = {
        "namespace": "default",
        "serviceaccount": {"name": "web", "uid": "sa-1"},
        "pod": {"name": "web-0", "uid": "pod-1"},
        "node": {"name": "node-1", "uid": "node-uid-1"},
        "warnafter": 1,
    }
    return {name: value for name, value in (made | changes).items() if value is not None}


def _text(document: Mapping[str, JSON]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()
