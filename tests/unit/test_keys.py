"""Which keys are allowed."""

from __future__ import annotations

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa, x25519

from istio_auth import keys
from istio_auth.errors import KeyRejected
from tests.fakes.authority import FakeAuthority
from tests.fakes.der import with_bytes

_P256 = "06082a8648ce3d030107"
_UNKNOWN_CURVE = "06082a8648ce3d030117"
_EC_KEY = "06072a8648ce3d0201"
_UNKNOWN_KEY_TYPE = "06072a8648ce3d0209"


def rsa_public_key(bits: int) -> rsa.RSAPublicKey:
    """A public key of that size whose private half nobody knows: making one takes no time."""
    return rsa.RSAPublicNumbers(65537, (1 << (bits - 1)) + 1).public_key()


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1()])
def test_p_256_and_p_384_pass(curve: ec.EllipticCurve) -> None:
    key = ec.generate_private_key(curve)
    assert keys.allowed_private_key(key) is key
    assert keys.allowed_public_key(key.public_key()) == key.public_key()


@pytest.mark.parametrize("curve", [ec.SECP224R1(), ec.SECP256K1(), ec.SECP521R1(), ec.BrainpoolP256R1()])
def test_other_curves_are_refused(curve: ec.EllipticCurve) -> None:
    key = ec.generate_private_key(curve)
    with pytest.raises(KeyRejected):
        keys.allowed_private_key(key)
    with pytest.raises(KeyRejected):
        keys.allowed_public_key(key.public_key())


@pytest.mark.parametrize(
    ("bits", "allowed"), [(2047, False), (2048, True), (8192, True), (8193, False), (16384, False)]
)
def test_rsa_has_a_lower_and_an_upper_bound(bits: int, allowed: bool) -> None:
    if allowed:
        assert keys.allowed_public_key(rsa_public_key(bits)).key_size == bits
    else:
        with pytest.raises(KeyRejected):
            keys.allowed_public_key(rsa_public_key(bits))


def test_a_weak_private_key_is_refused_like_its_public_half() -> None:
    with pytest.raises(KeyRejected):
        keys.allowed_private_key(rsa.generate_private_key(65537, 1024))  # noqa: S505  # the point of the test


def test_other_kinds_of_key_are_refused() -> None:
    for key in (
        ed25519.Ed25519PrivateKey.generate(),
        x25519.X25519PrivateKey.generate(),
        dsa.generate_private_key(2048),
    ):
        with pytest.raises(KeyRejected):
            keys.allowed_private_key(key)
        with pytest.raises(KeyRejected):
            keys.allowed_public_key(key.public_key())
    with pytest.raises(KeyRejected):
        keys.allowed_public_key(None)


@pytest.mark.parametrize(("old", "new"), [(_P256, _UNKNOWN_CURVE), (_EC_KEY, _UNKNOWN_KEY_TYPE)])
def test_a_key_that_nobody_knows_is_refused_and_not_a_crash(authority: FakeAuthority, old: str, new: str) -> None:
    certificate = authority.svid().leaf
    assert keys.public_key_of(certificate) == certificate.public_key()
    with pytest.raises(KeyRejected):
        keys.public_key_of(with_bytes(certificate, old, new))


def test_a_signature_holds_for_its_key_and_message_alone() -> None:
    for key in (
        keys.new_private_key(),
        ec.generate_private_key(ec.SECP384R1()),
        rsa.generate_private_key(65537, 2048),
    ):
        signature = keys.sign(key, b"message")
        keys.check_signature(key.public_key(), signature, b"message")
        with pytest.raises(InvalidSignature):
            keys.check_signature(key.public_key(), signature, b"another")
        with pytest.raises(InvalidSignature):
            keys.check_signature(keys.new_private_key().public_key(), signature, b"message")


def test_the_same_key_is_known_again() -> None:
    one, other = keys.new_private_key(), keys.new_private_key()
    assert keys.same_key(one.public_key(), one.public_key())
    assert not keys.same_key(one.public_key(), other.public_key())
    assert keys.fingerprint(one.public_key()) == keys.fingerprint(one.public_key())
    assert keys.fingerprint(one.public_key()) != keys.fingerprint(other.public_key())


def test_a_key_is_named_for_people() -> None:
    assert keys.key_type(keys.new_private_key().public_key()) == "P-256"
    assert keys.key_type(rsa_public_key(3072)) == "RSA-3072"


def test_each_key_signs_with_its_own_hash() -> None:
    assert keys.signature_hash(keys.new_private_key()).name == "sha256"
    assert keys.signature_hash(ec.generate_private_key(ec.SECP384R1()).public_key()).name == "sha384"
    assert keys.signature_hash(rsa_public_key(2048)).name == "sha256"
