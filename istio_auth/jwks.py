"""KeySet: the keys that may sign tokens, read from a JSON Web Key Set (RFC 7517, RFC 7518 3.1 and 6).

Which algorithms a key may be used with is settled here, by its type and its entry; the header of a token only picks one
of them (RFC 8725 3.1). An entry that can not be used is left out with its reason and does not spoil the others
(RFC 7517 5). There is one exception: a set that shows the private half of a key is refused whole, because anybody can
sign with that key now.
"""

from __future__ import annotations

import binascii
import re
from dataclasses import dataclass
from types import MappingProxyType
from typing import Self, TypeAlias

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from istio_auth.errors import MalformedError
from istio_auth.keys import MAX_RSA_BITS, MIN_RSA_BITS
from istio_auth.strict_json import JSON, parse_json

TokenKey: TypeAlias = ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey

RSA_ALGORITHMS = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})
# Each curve has the one algorithm that names it, and a size of its coordinates in bytes (RFC 7518 3.4 and 6.2.1.2).
_CURVES = MappingProxyType({"P-256": ("ES256", 32), "P-384": ("ES384", 48), "P-521": ("ES512", 66)})
ALGORITHMS = RSA_ALGORITHMS | {algorithm for algorithm, _ in _CURVES.values()}
EVERY_ALGORITHM = ALGORITHMS | {"EdDSA"}  # for callers that allow RFC 8037, with Ed25519; no JWT-SVID has it (JW-03)

# What the `use` of an entry may be; None stands for an entry that has none.
Uses: TypeAlias = tuple[str | None, ...]
SIGNATURES: Uses = ("sig", None)  # RFC 7517 4.2

_MAX_BYTES = 1 << 20
_MAX_ENTRIES = 100  # a token without a key id is tried with each of them
_MAX_KEY_ID = 512
_PRIVATE = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth"})
_BASE64URL = re.compile(r"[A-Za-z0-9_-]*")
_STANDARD = bytes.maketrans(b"-_", b"+/")
_PADDING = {0: b"", 2: b"==", 3: b"="}
_LAST = {2: "AQgw", 3: "AEIMQUYcgkosw048"}  # by the length of the last group: how it may end, with spare bits of zero


class InvalidKeySet(MalformedError):
    """A document that is no JSON Web Key Set, or one that must not be used."""


@dataclass(frozen=True, slots=True)
class VerificationKey:
    """One key that may sign tokens.

    Args:
        key_id: the name by which tokens refer to it (`kid`); empty if it has none.
        public_key: the key.
        algorithms: the signature algorithms it may be used with; never empty.
    """

    key_id: str
    public_key: TokenKey
    algorithms: frozenset[str]


@dataclass(frozen=True, slots=True)
class KeySet:
    """The keys of one issuer. An empty set vouches for nothing.

    Args:
        keys: the keys.
        left_out: for each entry of the document that is not among them, the reason, for people.
    """

    keys: tuple[VerificationKey, ...] = ()
    left_out: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, text: bytes | str, *, uses: Uses = SIGNATURES) -> Self:
        """The keys in a JSON Web Key Set.

        Args:
            text: the document.
            uses: the values of `use` that are taken, None for an entry without; other entries are left out.

        Raises:
            InvalidKeySet: it is no such document, is too large, has too many entries, or shows a private key.
        """
        try:
            document = parse_json(text, limit=_MAX_BYTES)
        except MalformedError as error:
            raise InvalidKeySet(f"a key set can not be read: {error}") from error
        return cls.from_document(document, uses=uses)

    @classmethod
    def from_document(cls, document: JSON, *, uses: Uses = SIGNATURES) -> Self:
        """The keys in a JSON Web Key Set that is parsed already (see `from_json`)."""
        if not isinstance(document, dict) or not isinstance(entries := document.get("keys"), list):
            raise InvalidKeySet("a key set is a JSON object with an array 'keys'")
        if len(entries) > _MAX_ENTRIES:
            raise InvalidKeySet(f"a key set has at most {_MAX_ENTRIES} entries, this one {len(entries)}")
        keys: list[VerificationKey] = []
        left_out: list[str] = []
        for place, entry in enumerate(entries):
            try:
                key = _key(entry, uses)
            except _LeftOut as reason:
                left_out.append(f"entry {place}: {reason}")
            else:
                keys += [key] if key not in keys else []
        return cls(tuple(keys), tuple(left_out))

    def named(self, key_id: str) -> tuple[VerificationKey, ...]:
        """The keys with this name: usually one, but there may be more (RFC 7517 4.5)."""
        return tuple(key for key in self.keys if key.key_id == key_id)


def base64url_octets(text: str) -> bytes:
    """The bytes of a text in base64url without padding (RFC 7515 2). Spare bits at its end must be zero.

    Raises:
        MalformedError: it is no such text. The error holds nothing of it.
    """
    rest = len(text) % 4
    if rest == 1 or not _BASE64URL.fullmatch(text):
        raise MalformedError("not in base64url")
    if rest and text[-1] not in _LAST[rest]:
        raise MalformedError("not in base64url: it ends in stray bits")
    return binascii.a2b_base64(text.encode().translate(_STANDARD) + _PADDING[rest])


class _LeftOut(Exception):
    """Why an entry is left out."""


def _key(entry: JSON, uses: Uses) -> VerificationKey:
    if not isinstance(entry, dict) or entry.get("kty") not in ("RSA", "EC", "OKP"):
        raise _LeftOut("its type is neither RSA, EC nor OKP")
    if shown := sorted(_PRIVATE & entry.keys()):
        raise InvalidKeySet(f"an entry shows the private half of its key ({', '.join(shown)})")
    _check_use(entry, uses)
    key_id = entry.get("kid", "")
    if not isinstance(key_id, str) or len(key_id) > _MAX_KEY_ID:
        raise _LeftOut(f"its name is no text of at most {_MAX_KEY_ID} characters")
    public_key, possible = {"RSA": _rsa, "EC": _ec, "OKP": _okp}[str(entry["kty"])](entry)
    algorithm = entry.get("alg")
    if algorithm is None:
        return VerificationKey(key_id, public_key, possible)
    if not isinstance(algorithm, str) or algorithm not in possible:
        raise _LeftOut(f"its algorithm {str(algorithm)[:40]!a} is none for such a key")
    return VerificationKey(key_id, public_key, frozenset({algorithm}))


def _check_use(entry: dict[str, JSON], uses: Uses) -> None:
    if "use" not in entry and None not in uses:
        raise _LeftOut("it does not say what it is for")
    if "use" in entry and (entry["use"] is None or entry["use"] not in uses):
        raise _LeftOut(f"it is for {str(entry['use'])[:40]!a}, not for {' or '.join(filter(None, uses))}")
    operations = entry.get("key_ops", ["verify"])
    if not isinstance(operations, list) or "verify" not in operations:
        raise _LeftOut("it is not for verifying")


def _rsa(entry: dict[str, JSON]) -> tuple[TokenKey, frozenset[str]]:
    modulus, exponent = _octets(entry, "n"), _octets(entry, "e")
    bits = int.from_bytes(modulus, "big").bit_length()
    if len(exponent) > 8:
        raise _LeftOut("its exponent is longer than any in use")
    if not MIN_RSA_BITS <= bits <= MAX_RSA_BITS:
        raise _LeftOut(f"RSA with {bits} bits is not allowed: use {MIN_RSA_BITS} to {MAX_RSA_BITS}")
    return _parsed("RS256", entry), RSA_ALGORITHMS


def _ec(entry: dict[str, JSON]) -> tuple[TokenKey, frozenset[str]]:
    curve = entry.get("crv")
    if not isinstance(curve, str) or curve not in _CURVES:
        raise _LeftOut("its curve is neither P-256, P-384 nor P-521")
    algorithm, size = _CURVES[curve]
    if {len(_octets(entry, "x")), len(_octets(entry, "y"))} != {size}:
        raise _LeftOut(f"its coordinates are not {size} bytes long")
    return _parsed(algorithm, entry), frozenset({algorithm})


def _okp(entry: dict[str, JSON]) -> tuple[TokenKey, frozenset[str]]:
    if entry.get("crv") != "Ed25519":
        raise _LeftOut("its curve is not Ed25519")
    _octets(entry, "x")  # refuses a second spelling of the same key
    return _parsed("EdDSA", entry), frozenset({"EdDSA"})


def _parsed(algorithm: str, entry: dict[str, JSON]) -> TokenKey:
    try:
        key = jwt.get_algorithm_by_name(algorithm).from_jwk(entry)
    except (jwt.InvalidKeyError, ValueError) as error:
        raise _LeftOut("its numbers make no key") from error
    assert isinstance(key, TokenKey)
    return key


def _octets(entry: dict[str, JSON], name: str) -> bytes:
    value = entry.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= MAX_RSA_BITS // 4:
        raise _LeftOut(f"its member {name!r} is missing or of a wrong size")
    try:
        return base64url_octets(value)
    except MalformedError as error:
        raise _LeftOut(f"its member {name!r} is {error}") from error
