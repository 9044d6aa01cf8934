"""KeySet: which keys of a JSON Web Key Set count, and for which algorithms (RFC 7517, RFC 7518)."""

from __future__ import annotations

import json

import pytest

from istio_auth.errors import MalformedError
from istio_auth.jwks import EVERY_ALGORITHM, RSA_ALGORITHMS, InvalidKeySet, KeySet, base64url_octets
from istio_auth.strict_json import JSON
from tests.fakes.token_issuer import TokenIssuer, base64url

GOOD = TokenIssuer(place=9)


def read(*entries: JSON) -> KeySet:
    return KeySet.from_json(json.dumps({"keys": list(entries)}))


class TestAKeyCounts:
    @pytest.mark.parametrize("algorithm", sorted(EVERY_ALGORITHM))
    def test_for_the_algorithm_it_names(self, algorithm: str) -> None:
        issuer = TokenIssuer(algorithm)
        (key,) = read(issuer.jwk()).keys
        assert (key.key_id, [*key.algorithms]) == (issuer.key_id, [algorithm])
        assert key.public_key == issuer.key.public_key()

    @pytest.mark.parametrize("algorithm", ["ES256", "ES384", "ES512"])
    def test_for_the_algorithm_of_its_curve(self, algorithm: str) -> None:
        (key,) = read(TokenIssuer(algorithm).jwk(alg=None)).keys
        assert key.algorithms == {algorithm}

    def test_for_all_of_rsa_if_it_names_none(self) -> None:
        (key,) = read(TokenIssuer("RS256").jwk(alg=None)).keys
        assert key.algorithms == RSA_ALGORITHMS

    @pytest.mark.parametrize("changes", [{"use": None}, {"key_ops": ["verify"]}, {"key_ops": ["sign", "verify"]}])
    def test_if_nothing_speaks_against_verifying(self, changes: dict[str, JSON]) -> None:
        assert len(read(GOOD.jwk(**changes)).keys) == 1

    def test_without_a_name(self) -> None:
        keys = read(GOOD.jwk(kid=None))
        assert keys.keys[0].key_id == ""
        assert keys.named("x") == ()

    def test_by_its_name(self) -> None:
        keys = read(GOOD.jwk(kid="a"), TokenIssuer("RS256").jwk(kid="b"))
        assert [key.public_key for key in keys.named("a")] == [GOOD.key.public_key()]

    def test_once_if_it_is_there_twice(self) -> None:
        assert len(read(GOOD.jwk(), GOOD.jwk()).keys) == 1

    def test_beside_another_of_its_name(self) -> None:
        keys = read(GOOD.jwk(kid="a"), TokenIssuer(place=8).jwk(kid="a"))
        assert len(keys.named("a")) == 2


@pytest.mark.parametrize(
    ("algorithm", "changes"),
    [
        ("ES256", {"kty": None}),
        ("ES256", {"kty": ["EC"]}),
        ("ES256", {"kty": "ec"}),
        ("ES256", {"use": "enc"}),
        ("ES256", {"use": "jwt-svid"}),
        ("ES256", {"use": 7}),
        ("ES256", {"key_ops": ["sign"]}),
        ("ES256", {"key_ops": "verify"}),
        ("ES256", {"kid": 7}),
        ("ES256", {"kid": "x" * 513}),
        ("ES256", {"alg": "none"}),
        ("ES256", {"alg": "HS256"}),
        ("ES256", {"alg": "RS256"}),
        ("ES256", {"alg": "ES384"}),
        ("ES256", {"alg": ["ES256"]}),
        ("ES256", {"crv": "P-384"}),
        ("ES256", {"crv": "secp256k1"}),
        ("ES256", {"crv": ["P-256"]}),
        ("ES256", {"x": None}),
        ("ES256", {"x": 7}),
        ("ES256", {"x": ""}),
        ("ES256", {"x": "+/+/"}),
        ("ES256", {"x": base64url(bytes(31))}),
        ("ES256", {"x": base64url(bytes(33))}),
        ("ES256", {"x": base64url(b"\1" * 32)}),  # not on the curve
        ("RS256", {"alg": "ES256"}),
        ("RS256", {"n": None}),
        ("RS256", {"e": base64url(b"\2")}),
        ("RS256", {"e": base64url(b"\1" * 9)}),
        ("RS256", {"n": base64url(b"\xff" * 128)}),
        ("RS256", {"n": base64url(b"\xff" * 1025)}),
    ],
)
def test_a_key_that_can_not_be_used_is_left_out_with_its_reason_and_spoils_nothing(
    algorithm: str, changes: dict[str, JSON]
) -> None:
    issuer = TokenIssuer(algorithm)
    keys = read(issuer.jwk(**changes), GOOD.jwk())
    assert [key.key_id for key in keys.keys] == [GOOD.key_id]
    (reason,) = keys.left_out
    assert reason.startswith("entry 0: ")
    assert read(issuer.jwk(), GOOD.jwk()).left_out == ()


@pytest.mark.parametrize(
    "entry",
    [
        7,
        "key",
        {},
        {"kty": "oct", "k": "c2VjcmV0", "alg": "HS256"},
        {"kty": "OKP", "crv": "Ed448", "x": base64url(bytes(57))},
        {"kty": "OKP", "crv": "X25519", "x": base64url(bytes(32))},
        {"kty": "OKP", "crv": "Ed25519", "x": base64url(bytes(31))},
        {"kty": "OKP", "crv": "Ed25519", "alg": "ES256", "x": base64url(bytes(32))},
    ],
)
def test_what_is_no_key_of_ours_is_left_out(entry: JSON) -> None:
    assert [key.key_id for key in read(entry, GOOD.jwk()).keys] == [GOOD.key_id]


@pytest.mark.parametrize("private", ["d", "p", "q", "dp", "dq", "qi", "oth"])
@pytest.mark.parametrize("algorithm", ["ES256", "RS256"])
def test_a_set_that_shows_a_private_key_is_refused(algorithm: str, private: str) -> None:
    entry = TokenIssuer(algorithm).jwk()
    with pytest.raises(InvalidKeySet):
        read(GOOD.jwk(), entry | {private: "AQAB"})
    assert len(read(GOOD.jwk(), entry).keys) == 2


@pytest.mark.parametrize("text", ["", "[]", "7", "{}", '{"keys": {}}', '{"keys": [], "keys": []}', b"\xff"])
def test_what_is_no_key_set_is_refused(text: bytes | str) -> None:
    with pytest.raises(InvalidKeySet):
        KeySet.from_json(text)


def test_only_so_large_a_set_is_looked_at() -> None:
    entries: list[JSON] = [TokenIssuer().jwk(kid=str(number)) for number in range(100)]
    assert len(read(*entries).keys) == 100
    with pytest.raises(InvalidKeySet):
        read(*entries, 7)
    with pytest.raises(InvalidKeySet):
        KeySet.from_json(json.dumps({"keys": [], "x": "x" * (1 << 20)}))


def test_a_set_may_be_empty() -> None:
    assert KeySet.from_json('{"keys": []}') == KeySet()


def test_keys_of_spiffe_bundles_say_what_they_are_for() -> None:
    entries: list[JSON] = [GOOD.jwk(use="jwt-svid", kid="a"), GOOD.jwk(kid="b"), GOOD.jwk(use=None, kid="c")]
    document: JSON = {"keys": entries}
    assert [key.key_id for key in KeySet.from_document(document, uses=("jwt-svid",)).keys] == ["a"]
    assert [key.key_id for key in KeySet.from_document(document).keys] == ["b", "c"]


@pytest.mark.parametrize("text", ["A", "AAAAA", "A=", "AA==", "A A", "A+", "A/", "AB", "AAB", "ä", "AA\n"])
def test_octets_have_one_spelling(text: str) -> None:
    with pytest.raises(MalformedError):
        base64url_octets(text)


@pytest.mark.parametrize("octets", [b"", b"\0", b"\xfb\xff", b"abc", bytes(range(256))])
def test_octets_are_read(octets: bytes) -> None:
    assert base64url_octets(base64url(octets)) == octets
