"""Hostile tokens: each has one fault, is signed by the real key wherever that is possible, and is named for its fault.

    for name, hostile in hostile_tokens(issuer, now).items(): ...

`issuer.token(now)` is the same token without any.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import NamedTuple

import jwt
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from istio_auth.strict_json import JSON
from istio_auth.tokens import TokenFault
from tests.fakes.token_issuer import TokenIssuer, base64url

LONGEST_LIFE = timedelta(days=1)  # the corpus has a token that lives longer


class HostileToken(NamedTuple):
    """A token and the one rule that it breaks."""

    text: str
    fault: TokenFault


def hostile_tokens(issuer: TokenIssuer, now: datetime) -> dict[str, HostileToken]:
    """The corpus, made with the key of an issuer that signs with ES256."""
    assert issuer.algorithm == "ES256"
    made: dict[str, HostileToken] = {}
    for group in (_forms, _algorithms, _headers, _signatures, _documents, _claims, _times):
        for name, text, fault in group(issuer, now):
            assert name not in made
            made[name] = HostileToken(text, fault)
    return made


_Group = Iterator[tuple[str, str, TokenFault]]


def _forms(issuer: TokenIssuer, now: datetime) -> _Group:
    token = issuer.token(now)
    head, payload, signature = token.split(".")
    whole: dict[str, JSON] = {"protected": head, "payload": payload, "signature": signature}
    signatures: list[JSON] = [{"protected": head, "signature": signature}]
    malformed = {
        "nothing": "",
        "dots": "..",
        "two segments": f"{head}.{payload}",
        "four segments": f"{token}.{signature}",
        "encrypted": f"{token}.{head}.{payload}",
        "flattened JSON serialization": json.dumps(whole),
        "general JSON serialization": json.dumps({"payload": payload, "signatures": signatures}),
        "JSON serialization in base64url": base64url(json.dumps(whole).encode()),
        "detached payload": f"{head}..{signature}",
        "no header": f".{payload}.{signature}",
        "space in front": f" {token}",
        "line feed behind": f"{token}\n",
        "zero byte behind": f"{token}\0",
        "prefix left on": f"Bearer {token}",
        "padding": f"{head}=.{payload}.{signature}",
        "padded signature": f"{head}.{payload}.{signature}==",
        "other alphabet": f"{head}.{payload}.{signature[:-4]}+/+/",
        "stray bits": f"{head}.{payload}.{signature[:-1]}{_with_stray_bits(signature[-1])}",
        "fullwidth dots": token.replace(".", "\uff0e"),
    }
    yield from ((name, text, TokenFault.MALFORMED) for name, text in malformed.items())
    yield "one megabyte", f"{head}.{payload}.{'A' * (1 << 20)}", TokenFault.TOO_LONG
    yield "one megabyte of claims", issuer.token(now, filler="x" * (1 << 20)), TokenFault.TOO_LONG
    yield "one megabyte of dots", "." * (1 << 20), TokenFault.TOO_LONG


def _algorithms(issuer: TokenIssuer, now: datetime) -> _Group:
    names: list[JSON] = ["none", "None", "NONE", "nOnE", "", "es256", "ES256 ", "ES256K", "RS1", 7, True, ["ES256"], {}]
    for name in names:
        yield f"algorithm {name!r}", issuer.sign(issuer.payload(now), header={"alg": name}), TokenFault.ALGORITHM
    yield "no algorithm", issuer.sign(issuer.payload(now), header={"alg": None}), TokenFault.ALGORITHM
    unsigned = issuer.sign(issuer.payload(now), header={"alg": "none"}).rpartition(".")[0]
    yield "unsigned", f"{unsigned}.", TokenFault.ALGORITHM
    yield "another curve's algorithm", issuer.sign(issuer.payload(now), header={"alg": "ES384"}), TokenFault.ALGORITHM
    yield "RSA with the key of a curve", issuer.sign(issuer.payload(now), header={"alg": "RS256"}), TokenFault.ALGORITHM
    point = issuer.key.public_key()
    pem = point.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    secrets = {"DER": issuer.public_der, "PEM": pem, "JWK": json.dumps(issuer.jwk()).encode(), "nothing": b""}
    for algorithm in ("HS256", "HS384", "HS512"):
        for name, secret in secrets.items():
            signed = issuer.sign(issuer.payload(now), header={"alg": algorithm}).rpartition(".")[0]
            mac = jwt.get_algorithm_by_name(algorithm).sign(signed.encode(), secret)
            yield f"{algorithm} with the public key ({name})", f"{signed}.{base64url(mac)}", TokenFault.ALGORITHM


def _headers(issuer: TokenIssuer, now: datetime) -> _Group:
    def with_header(**members: JSON) -> str:
        header: dict[str, JSON] = {"alg": "ES256", "kid": issuer.key_id}
        return issuer.sign(issuer.payload(now), header=json.dumps(header | members).encode())

    stranger = TokenIssuer(place=2)
    own: dict[str, JSON] = {
        "jwk": stranger.jwk(),
        "jwks": {"keys": [stranger.jwk()]},
        "jku": "https://elsewhere.test/keys",
        "x5u": "https://elsewhere.test/chain",
        "x5c": ["MIIB"],
    }
    for name, value in own.items():
        header: dict[str, JSON] = {"kid": issuer.key_id, name: value}
        yield f"{name} of a stranger who signs", stranger.sign(issuer.payload(now), header=header), TokenFault.HEADER
        yield f"{name} beside a good signature", with_header(**{name: value}), TokenFault.HEADER
    crits: list[JSON] = [["exp"], ["b64"], [], "exp", None, 7]
    for crit in crits:
        yield f"crit {crit!r}", with_header(crit=crit), TokenFault.EXTENSION
    yield "payload as it is", with_header(b64=False), TokenFault.EXTENSION
    kids: list[JSON] = [7, True, ["x"], {}]
    for kid in kids:
        yield f"key name {kid!r}", with_header(kid=kid), TokenFault.MALFORMED
    names = {
        "empty": "",
        "unknown": "unknown",
        "a path": "../../dev/null",
        "a query": "' OR '1'='1",
        "in capitals": issuer.key_id.upper(),
        "with a space": f"{issuer.key_id} ",
        "very long": "x" * 9_000,
    }
    for name, kid in names.items():
        yield f"key name {name}", with_header(kid=kid), TokenFault.UNKNOWN_KEY


def _signatures(issuer: TokenIssuer, now: datetime) -> _Group:
    signed, _, signature = issuer.token(now).rpartition(".")
    head, payload = signed.split(".")
    raw = _bytes(signature)
    other = base64url(json.dumps(issuer.payload(now, sub="root")).encode())
    stranger = TokenIssuer(place=2)
    r, s = int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big")
    wrong = {
        "none": "",
        "of another token": issuer.token(now + timedelta(seconds=1)).rpartition(".")[2],
        "one bit off": base64url(bytes((raw[0] ^ 1, *raw[1:]))),
        "zeros": base64url(bytes(64)),
        "of nothing but r": base64url(raw[:32] + bytes(32)),
        "one byte short": base64url(raw[:-1]),
        "one byte long": base64url(raw + b"\0"),
        "in DER": base64url(encode_dss_signature(r, s)),
        "of r and s exchanged": base64url(raw[32:] + raw[:32]),
        "of the order of the curve": base64url(bytes.fromhex(_ORDER) * 2),
        "much too long": base64url(raw * 100),
    }
    for name, text in wrong.items():
        yield f"signature {name}", f"{signed}.{text}", TokenFault.SIGNATURE
    yield "other claims under the signature", f"{head}.{other}.{signature}", TokenFault.SIGNATURE
    renamed = base64url(json.dumps({"alg": "ES256", "kid": issuer.key_id, "typ": "JWT"}).encode())
    yield "other header under the signature", f"{renamed}.{payload}.{signature}", TokenFault.SIGNATURE
    forged = stranger.sign(issuer.payload(now), header={"kid": issuer.key_id})
    yield "signed by a stranger", forged, TokenFault.SIGNATURE
    nameless = stranger.sign(issuer.payload(now), header={"kid": None})
    yield "signed by a stranger without a name", nameless, TokenFault.UNKNOWN_KEY


def _documents(issuer: TokenIssuer, now: datetime) -> _Group:
    good = json.dumps(issuer.payload(now))[1:-1]
    documents: dict[str, bytes] = {
        "empty": b" ",
        "a number": b"7",
        "a list": f"[{{{good}}}]".encode(),
        "a text": json.dumps(f"{{{good}}}").encode(),
        "another token": issuer.token(now).encode(),
        "broken": f"{{{good}".encode(),
        "two documents": f"{{{good}}}{{{good}}}".encode(),
        "with a claim twice": f'{{{good},"sub":"root"}}'.encode(),
        "with a claim twice further in": f'{{{good},"a":[{{"b":1,"b":2}}]}}'.encode(),
        "with a number that is none": f'{{{good},"a":NaN}}'.encode(),
        "with an infinite number": f'{{{good},"a":-Infinity}}'.encode(),
        "with a number of 5,000 digits": f'{{{good},"a":{"9" * 5_000}}}'.encode(),
        "in Latin 1": f'{{{good},"a":"ä"}}'.encode("latin-1"),
        "in UTF-16": f"{{{good}}}".encode("utf-16"),
        "with single quotes": f"{{{good},'a':1}}".encode(),
        "with a comment": f"{{{good}/* */}}".encode(),
    }
    for name, document in documents.items():
        yield f"claims {name}", issuer.sign(document), TokenFault.MALFORMED
    for depth in (60, 400):
        deep = f'{{{good},"a":{"[" * depth}{"]" * depth}}}'.encode()
        yield f"claims nested {depth} times", issuer.sign(deep), TokenFault.CLAIM
        objects = f'{{{good},"a":{"{" + chr(34) + "a" + chr(34) + ":"}{"[" * depth}{"]" * depth}}}}}'.encode()
        yield f"claims nested in an object {depth} times", issuer.sign(objects), TokenFault.CLAIM
    heads: dict[str, bytes] = {
        "empty": b" ",
        "a list": b'[{"alg":"ES256"}]',
        "with a name twice": b'{"alg":"ES256","alg":"ES256"}',
        "with the algorithm twice": b'{"alg":"none","alg":"ES256"}',
        "with a number that is none": b'{"alg":"ES256","a":NaN}',
        "that is no UTF-8": b'{"alg":"ES256","a":"\xff"}',
    }
    for name, head in heads.items():
        yield f"header {name}", issuer.sign(issuer.payload(now), header=head), TokenFault.MALFORMED


def _claims(issuer: TokenIssuer, now: datetime) -> _Group:
    def says(**changes: JSON) -> str:
        return issuer.sign(issuer.payload(now) | changes)

    yield "no end", issuer.token(now, exp=None), TokenFault.CLAIM
    yield "no audience", issuer.token(now, aud=None), TokenFault.CLAIM
    no_instants: list[JSON] = ["1893499200", True, None, [], {}, 1e300, -1e300, 10**30]
    for name in ("exp", "nbf", "iat"):
        for value in no_instants:
            yield f"{name} {value!r}", says(**{name: value}), TokenFault.CLAIM
    payload = json.dumps(issuer.payload(now, exp=None))[:-1]
    for text in ("1e999", "-1e999", "1E400"):
        yield f"end {text}", issuer.sign(f'{payload},"exp":{text}}}'.encode()), TokenFault.CLAIM
    no_texts: list[JSON] = [7, None, ["x"], {}]
    for name in ("sub", "jti"):
        for value in no_texts:
            yield f"{name} {value!r}", says(**{name: value}), TokenFault.CLAIM
    no_audiences: list[JSON] = [7, None, {"istio-ca": 1}, ["istio-ca", 7], [["istio-ca"]]]
    for value in no_audiences:
        yield f"audience {value!r}", says(aud=value), TokenFault.CLAIM
    others: list[JSON] = ["vault", ["vault"], [], "", "istio", "istio-ca ", "ISTIO-CA", "*"]
    for value in others:
        yield f"audience {value!r}", says(aud=value), TokenFault.AUDIENCE
    for value in (f"{issuer.issuer}/", issuer.issuer.upper(), "https://elsewhere.test", "", f"{issuer.issuer}\0"):
        yield f"issuer {value!r}", says(iss=value), TokenFault.ISSUER


def _times(issuer: TokenIssuer, now: datetime) -> _Group:
    second = int(now.timestamp())
    yield "ended", issuer.token(now, exp=second - 3600), TokenFault.EXPIRED
    yield "ended in 1970", issuer.token(now, exp=0), TokenFault.EXPIRED
    yield "ended before 1970", issuer.token(now, exp=-1), TokenFault.EXPIRED
    yield "begins in an hour", issuer.token(now, nbf=second + 3600), TokenFault.NOT_YET_VALID
    yield "made in an hour", issuer.token(now, iat=second + 3600), TokenFault.NOT_YET_VALID
    yield "begins in the year 9999", issuer.token(now, nbf=253402300799), TokenFault.NOT_YET_VALID
    life = int(LONGEST_LIFE.total_seconds())
    yield "lives too long", issuer.token(now, exp=second + life + 1), TokenFault.LONG_LIVED
    yield (
        "lives too long and does not say since when",
        issuer.token(now, iat=None, exp=second + life + 1),
        (TokenFault.LONG_LIVED),
    )
    yield "lives for ever", issuer.token(now, exp=253402300799), TokenFault.LONG_LIVED


_ORDER = "ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551"  # of P-256


def _bytes(segment: str) -> bytes:
    decode: Callable[[str], bytes] = jwt.utils.base64url_decode
    return decode(segment)


def _with_stray_bits(character: str) -> str:
    """The next character of the alphabet: it means the same bytes, and more bits than there are."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return alphabet[alphabet.index(character) + 1]
