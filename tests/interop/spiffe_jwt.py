"""Other people's JWT-SVIDs, in a process of their own: `python -m tests.interop.spiffe_jwt`, a question a line.

`{"token", "bundle", "trust_domain", "audience"}` is answered with the SPIFFE ID that the `spiffe` package finds in the
token, or with the name of its error; `{"algorithm", "payload"}` with a token that PyJWT makes, and its key set.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from spiffe import JwtBundle, JwtSvid, TrustDomain


def verdict(asked: dict[str, Any]) -> dict[str, str]:
    try:
        bundle = JwtBundle.parse(TrustDomain(asked["trust_domain"]), asked["bundle"].encode())
        svid = JwtSvid.parse_and_validate(asked["token"], bundle, {asked["audience"]})
    except Exception as error:  # noqa: BLE001  # its name is the answer
        return {"error": type(error).__name__}
    return {"spiffe_id": str(svid.spiffe_id)}


def made(asked: dict[str, Any]) -> dict[str, str]:
    algorithm = asked["algorithm"]
    curves = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}
    private = (
        ec.generate_private_key(curves[algorithm]) if algorithm in curves else rsa.generate_private_key(65537, 2048)
    )
    token = jwt.encode(asked["payload"], private, algorithm=algorithm, headers={"kid": "theirs"})
    entry = jwt.get_algorithm_by_name(algorithm).to_jwk(private.public_key(), as_dict=True)
    return {"token": token, "bundle": json.dumps({"keys": [entry | {"kid": "theirs", "use": "jwt-svid"}]})}


if __name__ == "__main__":
    for line in sys.stdin:
        question = json.loads(line)
        sys.stdout.write(json.dumps(made(question) if "algorithm" in question else verdict(question)) + "\n")
        sys.stdout.flush()
