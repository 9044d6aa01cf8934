"""A private key that lives elsewhere, as in a device: it signs and shows nothing, and lies on request."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

from cryptography.hazmat.primitives.asymmetric import ec


class ExternalKey(ec.EllipticCurvePrivateKey):
    """A P-256 key behind its interface.

    Attributes:
        signatures: how many it made.
        twist: changes each signature before it is given out; may raise.
    """

    def __init__(self) -> None:
        self._inner = ec.generate_private_key(ec.SECP256R1())
        self.signatures = 0
        self.twist: Callable[[bytes], bytes] = lambda signature: signature

    def sign(self, data: object, signature_algorithm: ec.EllipticCurveSignatureAlgorithm) -> bytes:
        assert isinstance(data, bytes)
        self.signatures += 1
        return self.twist(self._inner.sign(data, signature_algorithm))

    def public_key(self) -> ec.EllipticCurvePublicKey:
        return self._inner.public_key()

    @property
    def curve(self) -> ec.EllipticCurve:
        return self._inner.curve

    @property
    def key_size(self) -> int:
        return self._inner.key_size

    def exchange(self, *_: object) -> NoReturn:
        raise AssertionError("a signing key is for signing")

    def private_numbers(self) -> NoReturn:
        raise AssertionError("the key does not leave its device")

    def private_bytes(self, *_: object) -> NoReturn:
        raise AssertionError("the key does not leave its device")

    def __copy__(self) -> NoReturn:
        raise AssertionError("the key does not leave its device")

    def __deepcopy__(self, memo: dict[object, object]) -> NoReturn:
        raise AssertionError("the key does not leave its device")
