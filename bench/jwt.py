"""Tokens verified a second, as a share of what the signature check alone allows.

    python -m bench.jwt [--json] [--rounds N]

The limit is one check of the signature with cryptography, with key, signature and signed bytes at hand, and nothing
else: `bare` below. Ours is the whole way from the headers of a request to claims that nobody can change:

- `known`: a token that was verified before and is known again, which takes no signature check;
- `verified`: a token for the first time, by keys that are at hand;
- `cold`: a token for the first time, and the key set of its issuer before it was ever read: as a process sees it once.

All of them take turns within each round, and each share is the median over the rounds: the machine's noise falls on
all alike. What counts is processor time, for nothing is waited for. The tokens are those of a Kubernetes service
account in size and shape.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import json
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from istio_auth.jwks import KeySet
from istio_auth.tokens.rules import TokenRule
from istio_auth.tokens.verifier import TokenVerifier

BATCH = 100
ALGORITHMS = ("RS256", "ES256")
AIM = 0.5  # of the limit, for tokens that are seen for the first time, with ES256
_ISSUER, _AUDIENCE = "https://issuer.test", "web"
_SHA256, _PKCS1 = hashes.SHA256(), padding.PKCS1v15()
_ECDSA = ec.ECDSA(_SHA256)


@dataclass(frozen=True)
class Figures:
    """Of one algorithm: operations a second, and shares of the bare signature check."""

    algorithm: str
    token_characters: int
    bare_per_second: float
    known_per_second: float
    known_share: float
    verified_per_second: float
    verified_share: float
    cold_per_second: float
    cold_share: float


class Signer:
    """An issuer with one key, which shares no code with what is measured."""

    def __init__(self, algorithm: str) -> None:
        self._key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
        if algorithm == "ES256":
            self._key = ec.generate_private_key(ec.SECP256R1())
            point = self._key.public_key().public_numbers()
            self._jwk = {"kty": "EC", "crv": "P-256", "x": _number(point.x), "y": _number(point.y)}
        else:
            self._key = rsa.generate_private_key(65537, 2048)
            numbers = self._key.public_key().public_numbers()
            self._jwk = {"kty": "RSA", "n": _number(numbers.n), "e": _base64url(b"\1\0\1")}
        self._jwk |= {"use": "sig", "alg": algorithm, "kid": hashlib.sha256(repr(self._jwk).encode()).hexdigest()}
        self._header = {"alg": algorithm, "kid": self._jwk["kid"]}

    def key_set(self) -> str:
        """What it publishes."""
        return json.dumps({"keys": [self._jwk]})

    def token(self, number: int) -> tuple[str, Callable[[], None]]:
        """A token, and the bare check of its signature."""
        signed = b".".join(_base64url(json.dumps(part).encode()).encode() for part in (self._header, _claims(number)))
        if isinstance(self._key, rsa.RSAPrivateKey):
            signature, public = self._key.sign(signed, _PKCS1, _SHA256), self._key.public_key()
            return f"{signed.decode()}.{_base64url(signature)}", lambda: public.verify(
                signature, signed, _PKCS1, _SHA256
            )
        der, point = self._key.sign(signed, _ECDSA), self._key.public_key()
        raw = b"".join(half.to_bytes(32, "big") for half in decode_dss_signature(der))
        return f"{signed.decode()}.{_base64url(raw)}", lambda: point.verify(der, signed, _ECDSA)


async def measure(algorithm: str, rounds: int) -> Figures:
    """The figures of one algorithm."""
    signer = Signer(algorithm)
    tokens, checks = zip(*(signer.token(number) for number in range(BATCH)), strict=True)
    requests = [_headers(token) for token in tokens]
    keys = KeySet.from_json(signer.key_set())
    knowing, forgetful = _verifier(keys, remembered=BATCH), _verifier(keys, remembered=0)

    async def bare() -> None:
        for check in checks:
            check()

    async def cold() -> None:
        for request in requests:
            assert await _verifier(KeySet.from_json(signer.key_set()), remembered=0).verify(request)

    contestants = [bare, lambda: _all(knowing, requests), lambda: _all(forgetful, requests), cold]
    return _figures(algorithm, len(tokens[0]), await _turns(contestants, rounds))


def main() -> None:
    """Measure all algorithms, and print them."""
    parser = argparse.ArgumentParser(prog="python -m bench.jwt", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--rounds", type=int, default=50, help="more rounds, less noise (default 50)")
    arguments = parser.parse_args()
    results = [asyncio.run(measure(algorithm, arguments.rounds)) for algorithm in ALGORITHMS]
    if arguments.json:
        print(json.dumps([asdict(result) for result in results], indent=2))
    else:
        print(_table(results))


async def _turns(contestants: Sequence[Callable[[], Awaitable[None]]], rounds: int) -> list[list[float]]:
    """The seconds of processor time that each took in each round."""
    seconds: list[list[float]] = [[] for _ in contestants]
    for number in range(rounds + 2):
        for contestant, times in zip(contestants, seconds, strict=True):
            started = time.process_time()
            await contestant()
            if number >= 2:  # the first ones fill caches
                times.append(time.process_time() - started)
    return seconds


async def _all(verifier: TokenVerifier, requests: Sequence[Sequence[tuple[bytes, bytes]]]) -> None:
    for request in requests:
        assert await verifier.verify(request)


def _verifier(keys: KeySet, *, remembered: int) -> TokenVerifier:
    return TokenVerifier([TokenRule(_ISSUER, {_AUDIENCE}, keys=keys)], remembered=remembered)


def _headers(token: str) -> list[tuple[bytes, bytes]]:
    """Those of a usual request, as ASGI has them."""
    return [
        (b"host", b"web.test"),
        (b"user-agent", b"curl/8.0"),
        (b"accept", b"*/*"),
        (b"authorization", f"Bearer {token}".encode()),
    ]


def _claims(number: int) -> dict[str, object]:
    now = int(datetime.now(UTC).timestamp())
    return {
        "iss": _ISSUER,
        "aud": [_AUDIENCE],
        "sub": "system:serviceaccount:default:web",
        "iat": now,
        "nbf": now,
        "exp": now + 3600,
        "jti": f"00000000-0000-4000-8000-{number:012}",
        "kubernetes.io": {
            "namespace": "default",
            "node": {"name": "node-1", "uid": "646e7c5e-32d6-4d42-9dbd-e504e6cbe6b1"},
            "pod": {"name": "web-75c6ffcb5b-k4r2m", "uid": "5e0bd49b-f040-43b0-99b7-22765a53f7f3"},
            "serviceaccount": {"name": "web", "uid": "14ee3fa4-a7e2-420f-9f9a-dbc4507c3798"},
        },
    }


def _figures(algorithm: str, characters: int, seconds: Sequence[Sequence[float]]) -> Figures:
    bare, known, verified, cold = seconds

    def share(part: Sequence[float]) -> float:
        return round(statistics.median(one / other for one, other in zip(bare, part, strict=True)), 3)

    def rate(times: Sequence[float]) -> float:
        return round(BATCH / statistics.median(times), 1)

    return Figures(
        algorithm,
        characters,
        bare_per_second=rate(bare),
        known_per_second=rate(known),
        known_share=share(known),
        verified_per_second=rate(verified),
        verified_share=share(verified),
        cold_per_second=rate(cold),
        cold_share=share(cold),
    )


def _table(results: Sequence[Figures]) -> str:
    lines = [
        f"{'algorithm':<10}{'bare/s':>9}{'known/s':>10}{'share':>7}{'verified/s':>12}{'share':>7}{'cold/s':>9}{'share':>7}"
    ]
    lines += [
        f"{one.algorithm:<10}{one.bare_per_second:>9.0f}{one.known_per_second:>10.0f}{one.known_share:>7.2f}"
        f"{one.verified_per_second:>12.0f}{one.verified_share:>7.2f}{one.cold_per_second:>9.0f}{one.cold_share:>7.2f}"
        for one in results
    ]
    remark = (
        f"The aim is {AIM} of the bare check for a token seen for the first time, with ES256. One processor, medians."
    )
    return "\n".join([*lines, remark])


def _number(number: int) -> str:
    return _base64url(number.to_bytes((number.bit_length() + 255) // 256 * 32, "big"))


def _base64url(octets: bytes) -> str:
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()


if __name__ == "__main__":
    main()
