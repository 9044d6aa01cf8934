"""Which keys are allowed, and what identifies a key. ECDSA P-256 is the default; P-384 and RSA-2048 to 8192 pass.

Signing keys are of cryptography's own private-key interfaces: a subclass with its own `sign()` (for a PKCS#11 token or
a KMS) can be used wherever a signing key is taken.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import TypeAlias

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from istio_auth.errors import KeyRejected

PrivateKey: TypeAlias = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
PublicKey: TypeAlias = ec.EllipticCurvePublicKey | rsa.RSAPublicKey

MIN_RSA_BITS = 2048
MAX_RSA_BITS = 8192  # with a larger key, a stranger could make each signature check cost us tens of milliseconds
_CURVES = {"secp256r1": "P-256", "secp384r1": "P-384"}
# Made once: making them for each signature would take a tenth of its time.
_SHA256, _SHA384 = hashes.SHA256(), hashes.SHA384()
_ECDSA_SHA256, _ECDSA_SHA384, _PKCS1 = ec.ECDSA(_SHA256), ec.ECDSA(_SHA384), padding.PKCS1v15()


def new_private_key() -> ec.EllipticCurvePrivateKey:
    """A fresh ECDSA P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def allowed_public_key(key: object) -> PublicKey:
    """The key itself, if its type and size are allowed.

    Raises:
        KeyRejected: they are not.
    """
    if isinstance(key, ec.EllipticCurvePublicKey):
        if key.curve.name not in _CURVES:
            raise KeyRejected(f"the curve {key.curve.name} is not allowed: use P-256 or P-384")
        return key
    if isinstance(key, rsa.RSAPublicKey):
        if not MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS:
            raise KeyRejected(f"RSA with {key.key_size} bits is not allowed: use {MIN_RSA_BITS} to {MAX_RSA_BITS}")
        return key
    raise KeyRejected(f"keys of type {type(key).__name__} are not allowed: use ECDSA P-256, P-384 or RSA")


def public_key_of(holder: x509.Certificate | x509.CertificateSigningRequest) -> PublicKey:
    """The key in a certificate or signing request, if its type and size are allowed.

    Raises:
        KeyRejected: they are not, or the key does not parse.
    """
    try:
        key = holder.public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise KeyRejected("the key does not parse, or is of an unknown type: use ECDSA P-256, P-384 or RSA") from error
    return allowed_public_key(key)


def allowed_private_key(key: object) -> PrivateKey:
    """The key itself, if its type and size are allowed.

    Raises:
        KeyRejected: they are not.
    """
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise KeyRejected(f"keys of type {type(key).__name__} are not allowed: use ECDSA P-256, P-384 or RSA")
    allowed_public_key(key.public_key())
    return key


def key_type(key: PublicKey) -> str:
    """The kind of a key for people: `P-256`, `RSA-2048`."""
    if isinstance(key, rsa.RSAPublicKey):
        return f"RSA-{key.key_size}"
    return _CURVES.get(key.curve.name, key.curve.name)


def public_key_der(key: PublicKey) -> bytes:
    """The SubjectPublicKeyInfo of a key, in DER."""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def fingerprint(key: PublicKey) -> str:
    """The SHA-256 of the SubjectPublicKeyInfo, in hex: what we keep to recognize a key."""
    return hashlib.sha256(public_key_der(key)).hexdigest()


def same_key(one: PublicKey, other: PublicKey) -> bool:
    """Whether two public keys are the same key."""
    return hmac.compare_digest(public_key_der(one), public_key_der(other))


def signature_hash(key: PrivateKey | PublicKey) -> hashes.SHA256 | hashes.SHA384:
    """The hash that belongs to a key: SHA-384 for P-384, SHA-256 otherwise."""
    if not isinstance(key, rsa.RSAPrivateKey | rsa.RSAPublicKey) and key.curve.name == "secp384r1":
        return _SHA384
    return _SHA256


def sign(key: PrivateKey, message: bytes) -> bytes:
    """A signature over the message: ECDSA, or RSA with PKCS#1 v1.5, with the hash that belongs to the key."""
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(message, _PKCS1, _SHA256)
    return key.sign(message, _ECDSA_SHA384 if key.curve.name == "secp384r1" else _ECDSA_SHA256)


def check_signature(key: PublicKey, signature: bytes, message: bytes) -> None:
    """Check a signature that `sign` made.

    Raises:
        cryptography.exceptions.InvalidSignature: the signature is not by this key over this message.
    """
    if isinstance(key, rsa.RSAPublicKey):
        key.verify(signature, message, _PKCS1, _SHA256)
    else:
        key.verify(signature, message, _ECDSA_SHA384 if key.curve.name == "secp384r1" else _ECDSA_SHA256)
