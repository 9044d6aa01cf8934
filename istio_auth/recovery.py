"""What an agent whose SVID has lapsed signs with its node key: its name, a nonce from the CA, and its new CSR.

The label keeps the signature from being of use for anything else. No two different requests give the same bytes: a
SPIFFE ID holds no zero byte, and nonce and hash have fixed lengths.
"""

from __future__ import annotations

import hashlib

from istio_auth.errors import MalformedError
from istio_auth.spiffe_id import SpiffeID

NONCE_BYTES = 32
_LABEL = b"istio-auth recover v1"


def recovery_message(spiffe_id: SpiffeID, nonce: bytes, csr: bytes) -> bytes:
    """The bytes to sign, by `istio_auth.keys.sign`.

    Args:
        spiffe_id: the agent's identity.
        nonce: as the CA gave it.
        csr: the signing request for the new SVID, in DER.

    Raises:
        MalformedError: the nonce has the wrong length.
    """
    if len(nonce) != NONCE_BYTES:
        raise MalformedError(f"a nonce has {NONCE_BYTES} bytes, this one {len(nonce)}", public="malformed nonce")
    return b"\0".join((_LABEL, str(spiffe_id).encode(), nonce + hashlib.sha256(csr).digest()))
