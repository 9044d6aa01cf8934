"""Signing requests that are wrong in exactly one way, as PEM texts by the name of their fault."""

from __future__ import annotations

import base64

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from tests.fakes.der import tlv
from tests.fakes.standalone import csr, der, new_key, pem

_ECDSA_SHA1 = bytes.fromhex("300906072a8648ce3d0401")


def bad_csrs() -> dict[str, str]:
    """One text for each fault."""
    good = pem(csr(new_key()))
    head, *lines, foot = good.splitlines()
    return {
        "empty": "",
        "garbage": "x" * 100,
        "unicode": "é\0\n" * 50,
        "two": good + good,
        "certificate": good.replace("CERTIFICATE REQUEST", "CERTIFICATE"),
        "truncated": "\n".join([head, *lines[:2], foot]),
        "oversized": good + "#" * (17 << 10),
        "weak key": pem(csr(rsa.generate_private_key(65537, 1024))),  # noqa: S505  # that is its fault
        "SHA-1": _sha1_signed(),
        "wrong signature": _wrongly_signed(),
        "asks for a CA": pem(csr(new_key(), extra=x509.BasicConstraints(ca=True, path_length=None))),
    }


def _sha1_signed() -> str:
    key = new_key()
    body = csr(key).tbs_certrequest_bytes
    signature = key.sign(body, ec.ECDSA(hashes.SHA1()))  # noqa: S303  # that is its fault
    return _pem(tlv(0x30, body + _ECDSA_SHA1 + tlv(0x03, b"\0" + signature)))


def _wrongly_signed() -> str:
    changed = bytearray(der(csr(new_key())))
    changed[-1] ^= 1
    return _pem(bytes(changed))


def _pem(request: bytes) -> str:
    body = base64.encodebytes(request).decode()
    return f"-----BEGIN CERTIFICATE REQUEST-----\n{body}-----END CERTIFICATE REQUEST-----\n"
