"""verify_token: every single fault is refused for its own reason, and the same token passes once it is mended."""

from __future__ import annotations

import json
import pickle
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest

from istio_auth.errors import Code, NotAuthenticated
from istio_auth.jwks import EVERY_ALGORITHM, KeySet
from istio_auth.strict_json import JSON
from istio_auth.tokens import MAX_TOKEN, Claims, TokenFault, TokenRefused, claimed_end, unproven, verify_token
from tests.fakes.token_issuer import AUDIENCE, CLUSTER, HOUR, TokenIssuer, base64url

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)
ISSUER = TokenIssuer()
RSA = TokenIssuer("RS256")


def verify(token: str, keys: KeySet | None = None, **changes: Any) -> Claims:
    asked: dict[str, Any] = {"issuer": CLUSTER, "audiences": {AUDIENCE}, "now": NOW, "leeway": timedelta()}
    return verify_token(token, keys or ISSUER.keys(), **(asked | changes))


def fault(token: str, keys: KeySet | None = None, **changes: Any) -> TokenFault:
    with pytest.raises(TokenRefused) as caught:
        verify(token, keys, **changes)
    return caught.value.fault


def numeric(instant: datetime) -> int:
    return int(instant.timestamp())


def test_a_good_token_tells_its_claims() -> None:
    claims = verify(ISSUER.token(NOW, colour="blue"))
    assert (claims.issuer, claims.subject, claims.audiences) == (
        CLUSTER,
        "system:serviceaccount:default:web",
        (AUDIENCE,),
    )
    assert (claims.issued_at, claims.not_before, claims.expires_at) == (NOW, NOW, NOW + HOUR)
    assert claims.token_id.startswith("5a0d3f6e")
    assert claims.members["colour"] == "blue"


@pytest.mark.parametrize("algorithm", sorted(EVERY_ALGORITHM))
def test_every_algorithm_is_verified(algorithm: str) -> None:
    issuer = TokenIssuer(algorithm)
    token = issuer.token(NOW)
    assert verify(token, issuer.keys(), algorithms={algorithm}).audiences == (AUDIENCE,)
    head, _, signature = token.split(".")
    other = base64url(json.dumps(issuer.payload(NOW, sub="root")).encode())
    forged = f"{head}.{other}.{signature}"
    assert fault(forged, issuer.keys(), algorithms={algorithm}) is TokenFault.SIGNATURE


class TestTheKeyDecidesTheAlgorithm:
    def test_none_is_no_algorithm(self) -> None:
        unsigned = jwt.encode(ISSUER.payload(NOW), "", algorithm="none", headers={"kid": ISSUER.key_id})
        assert fault(unsigned) is TokenFault.ALGORITHM
        names: list[JSON] = ["none", "None", "NONE", "", None, 7, ["ES256"]]
        for name in names:
            assert fault(ISSUER.sign(ISSUER.payload(NOW), header={"alg": name})) is TokenFault.ALGORITHM

    def test_a_public_key_is_no_shared_secret(self) -> None:
        signed = ISSUER.sign(ISSUER.payload(NOW), header={"alg": "HS256"}).rpartition(".")[0]
        secret = ISSUER.public_der
        mac = jwt.get_algorithm_by_name("HS256").sign(signed.encode(), secret)
        assert fault(f"{signed}.{base64url(mac)}") is TokenFault.ALGORITHM

    def test_an_algorithm_that_the_entry_of_the_key_does_not_name_is_refused(self) -> None:
        token = RSA.sign(RSA.payload(NOW), header={"alg": "PS256"}, with_algorithm="PS256")
        assert fault(token, RSA.keys()) is TokenFault.ALGORITHM
        verify(token, RSA.keys(alg="PS256"))
        verify(token, RSA.keys(alg=None))

    def test_the_header_can_not_rename_what_was_used(self) -> None:
        token = RSA.sign(RSA.payload(NOW), header={"alg": "RS512"})
        assert fault(token, RSA.keys(alg=None)) is TokenFault.SIGNATURE

    def test_an_algorithm_that_nobody_asks_for_is_refused(self) -> None:
        assert fault(ISSUER.token(NOW), algorithms={"RS256"}) is TokenFault.ALGORITHM
        verify(ISSUER.token(NOW), algorithms={"RS256", "ES256"})

    def test_edwards_curves_are_for_who_asks_for_them(self) -> None:
        edwards = TokenIssuer("EdDSA")
        assert fault(edwards.token(NOW), edwards.keys()) is TokenFault.ALGORITHM
        verify(edwards.token(NOW), edwards.keys(), algorithms={"EdDSA"})

    def test_a_key_of_another_type_is_not_tried(self) -> None:
        token = ISSUER.sign(ISSUER.payload(NOW), header={"alg": "ES384"})
        assert fault(token) is TokenFault.ALGORITHM


class TestTheKey:
    def test_is_found_by_its_name(self) -> None:
        other = TokenIssuer(place=1)
        both = KeySet((*other.keys().keys, *ISSUER.keys().keys))
        verify(ISSUER.token(NOW), both)
        assert fault(ISSUER.token(NOW), other.keys()) is TokenFault.UNKNOWN_KEY
        assert fault(ISSUER.token(NOW), KeySet()) is TokenFault.UNKNOWN_KEY

    def test_of_another_under_its_name_is_the_wrong_one(self) -> None:
        other = TokenIssuer(place=1)
        assert fault(ISSUER.token(NOW), other.keys(kid=ISSUER.key_id)) is TokenFault.SIGNATURE
        both = KeySet((*other.keys(kid=ISSUER.key_id).keys, *ISSUER.keys().keys))
        verify(ISSUER.token(NOW), both)

    @pytest.mark.parametrize("kid", [7, ["x"], {}, True])
    def test_has_a_text_for_a_name(self, kid: JSON) -> None:
        assert fault(ISSUER.sign(ISSUER.payload(NOW), header={"kid": kid})) is TokenFault.MALFORMED

    def test_is_looked_for_among_all_when_the_token_names_none(self) -> None:
        token = ISSUER.sign(ISSUER.payload(NOW), header={"kid": None})
        verify(token, KeySet((*RSA.keys().keys, *TokenIssuer(place=1).keys().keys, *ISSUER.keys().keys)))
        assert fault(token, TokenIssuer(place=1).keys()) is TokenFault.UNKNOWN_KEY
        assert fault(token, KeySet()) is TokenFault.UNKNOWN_KEY

    @pytest.mark.parametrize("name", ["jwk", "jku", "x5u", "x5c", "jwks"])
    def test_is_never_named_by_the_token_itself(self, name: str) -> None:
        stranger = TokenIssuer(place=2)
        values: list[JSON] = [stranger.jwk(), "https://elsewhere.test/keys", ["MIIB"], {}]
        for value in values:
            header: dict[str, JSON] = {"kid": ISSUER.key_id, name: value}
            assert fault(stranger.sign(ISSUER.payload(NOW), header=header)) is TokenFault.HEADER
            assert fault(ISSUER.sign(ISSUER.payload(NOW), header=header)) is TokenFault.HEADER

    def test_without_a_name_may_be_meant_by_any(self) -> None:
        nameless = ISSUER.keys(kid=None)
        verify(ISSUER.token(NOW), nameless)
        assert fault(TokenIssuer(place=1).token(NOW), nameless) is TokenFault.UNKNOWN_KEY
        named = KeySet((*TokenIssuer(place=1).keys(kid=ISSUER.key_id).keys, *nameless.keys))
        assert fault(ISSUER.token(NOW), named) is TokenFault.SIGNATURE


class TestTheForm:
    def test_is_compact(self) -> None:
        token = ISSUER.token(NOW)
        head, payload, signature = token.split(".")
        for text in (
            "",
            ".",
            "..",
            "garbage",
            f"{head}.{payload}",
            f"{token}.{signature}",
            f" {token}",
            f"{token}\n",
            f"{head}=.{payload}.{signature}",
            f"{head}.{payload}.{signature}=",
            f"{head}.{payload}.{signature[:-1]}é",
            f"{head}A.{payload}.{signature}",
            json.dumps({"protected": head, "payload": payload, "signature": signature}),
        ):
            assert fault(text) is TokenFault.MALFORMED, text
        verify(token)

    def test_an_empty_signature_is_a_wrong_one(self) -> None:
        assert fault(ISSUER.token(NOW).rpartition(".")[0] + ".") is TokenFault.SIGNATURE

    @pytest.mark.parametrize("header", [b"", b"7", b"[]", b"{", b'{"alg":"ES256","alg":"ES256"}', b"\xff"])
    def test_has_an_object_for_a_header(self, header: bytes) -> None:
        assert fault(ISSUER.sign(ISSUER.payload(NOW), header=header)) is TokenFault.MALFORMED

    @pytest.mark.parametrize("payload", [b"7", b"[]", b"{", b"\xff", b'{"exp":1e999,"exp":1}', b'{"exp":NaN}'])
    def test_has_an_object_for_claims(self, payload: bytes) -> None:
        assert fault(ISSUER.sign(payload)) is TokenFault.MALFORMED

    def test_is_signed_as_it_is_sent(self) -> None:
        header = json.dumps({"alg": "ES256", "kid": ISSUER.key_id, "b64": False}).encode()
        assert fault(ISSUER.sign(ISSUER.payload(NOW), header=header)) is TokenFault.EXTENSION

    @pytest.mark.parametrize("crit", [["exp"], ["b64"], [], None, "x"])
    def test_has_no_extension_that_must_be_understood(self, crit: JSON) -> None:
        header = json.dumps({"alg": "ES256", "kid": ISSUER.key_id, "crit": crit, "b64": True}).encode()
        assert fault(ISSUER.sign(ISSUER.payload(NOW), header=header)) is TokenFault.EXTENSION

    def test_may_have_members_that_need_not_be_understood(self) -> None:
        verify(ISSUER.sign(ISSUER.payload(NOW), header={"typ": "JWT", "x5t": "x"}))

    def test_is_not_too_long(self) -> None:
        short = len(ISSUER.token(NOW, filler=""))
        room = (MAX_TOKEN - short) * 3 // 4 - 4
        verify(ISSUER.token(NOW, filler="x" * room))
        assert fault(ISSUER.token(NOW, filler="x" * (room + 20))) is TokenFault.TOO_LONG


class TestTheClaims:
    @pytest.mark.parametrize("name", ["exp", "aud"])
    def test_that_are_always_needed(self, name: str) -> None:
        assert fault(ISSUER.token(NOW, **{name: None})) is TokenFault.CLAIM

    def test_that_are_asked_for(self) -> None:
        assert fault(ISSUER.token(NOW, colour=None), required={"colour"}) is TokenFault.CLAIM
        verify(ISSUER.token(NOW, colour="blue"), required={"colour"})
        verify(ISSUER.token(NOW, nbf=None, iat=None, jti=None, sub=None))

    @pytest.mark.parametrize("name", ["exp", "nbf", "iat"])
    @pytest.mark.parametrize("value", ["1893499200", True, [], {}, 1e300, -1e300, 10**30])
    def test_that_are_instants(self, name: str, value: JSON) -> None:
        assert fault(ISSUER.token(NOW, **{name: value})) is TokenFault.CLAIM

    @pytest.mark.parametrize("name", ["exp", "nbf", "iat", "aud", "iss", "sub"])
    def test_that_are_nothing(self, name: str) -> None:
        payload = ISSUER.payload(NOW) | {name: None}
        assert fault(ISSUER.sign(payload)) is TokenFault.CLAIM

    @pytest.mark.parametrize("name", ["iss", "sub", "jti"])
    def test_that_are_texts(self, name: str) -> None:
        assert fault(ISSUER.sign(ISSUER.payload(NOW) | {name: ["x"]})) is TokenFault.CLAIM

    def test_may_count_parts_of_seconds(self) -> None:
        assert verify(ISSUER.token(NOW, exp=numeric(NOW) + 0.5)).expires_at == NOW + SECOND / 2

    def test_name_the_issuer(self) -> None:
        assert fault(ISSUER.token(NOW, iss="https://elsewhere.test")) is TokenFault.ISSUER
        assert fault(ISSUER.token(NOW, iss=f"{CLUSTER}/")) is TokenFault.ISSUER
        assert fault(ISSUER.token(NOW, iss=None)) is TokenFault.ISSUER
        assert verify(ISSUER.token(NOW, iss=None), issuer=None).issuer == ""

    def test_can_not_be_changed_however_deep(self) -> None:
        claims = verify(ISSUER.token(NOW, deep={"roles": ["reader", {"of": ["a"]}]}))
        with pytest.raises(TypeError):
            claims.members["sub"] = "root"  # type: ignore[index]  # which is the point
        deep = claims.members["deep"]
        assert isinstance(deep, Mapping)
        with pytest.raises(TypeError):
            deep["roles"] = ()  # type: ignore[index]  # the same
        roles = deep["roles"]
        assert isinstance(roles, tuple)
        inner = roles[1]
        assert isinstance(inner, Mapping)
        assert inner["of"] == ("a",)

    def test_are_copied_for_who_wants_to_change_or_write_them(self) -> None:
        payload = ISSUER.payload(NOW, deep={"roles": ["reader", {"of": ["a"]}]})
        claims = verify(ISSUER.sign(payload))
        copy = claims.to_document()
        assert json.loads(json.dumps(copy)) == payload
        copy["deep"] = copy["sub"] = None
        assert claims.to_document() == payload


class TestTheAudience:
    @pytest.mark.parametrize("audience", ["vault", ["vault"], [], "", "istio", "ISTIO-CA", ["istio-ca "]])
    def test_must_be_one_of_ours(self, audience: JSON) -> None:
        assert fault(ISSUER.token(NOW, aud=audience)) is TokenFault.AUDIENCE

    @pytest.mark.parametrize("audience", [AUDIENCE, [AUDIENCE], ["vault", AUDIENCE], ["other"]])
    def test_may_be_one_of_several(self, audience: JSON) -> None:
        verify(ISSUER.token(NOW, aud=audience), audiences=[AUDIENCE, "other"])

    @pytest.mark.parametrize("audience", [7, {AUDIENCE: 1}, [AUDIENCE, 7], [[AUDIENCE]]])
    def test_is_a_text_or_a_list_of_texts(self, audience: JSON) -> None:
        assert fault(ISSUER.token(NOW, aud=audience)) is TokenFault.CLAIM

    def test_fits_nobody_who_names_none(self) -> None:
        assert fault(ISSUER.token(NOW), audiences=()) is TokenFault.AUDIENCE

    def test_need_not_be_there_for_who_asks_for_none(self) -> None:
        verify(ISSUER.token(NOW, aud=None), audiences=None)
        verify(ISSUER.token(NOW, aud="vault"), audiences=None)


class TestTime:
    def test_ends_a_token(self) -> None:
        token = ISSUER.token(NOW)
        verify(token, now=NOW + HOUR - SECOND)
        assert fault(token, now=NOW + HOUR) is TokenFault.EXPIRED

    @pytest.mark.parametrize("name", ["nbf", "iat"])
    def test_begins_a_token(self, name: str) -> None:
        token = ISSUER.token(NOW, **{"nbf": None, "iat": None, name: numeric(NOW)})
        assert fault(token, now=NOW - SECOND) is TokenFault.NOT_YET_VALID
        verify(token)

    def test_may_differ_by_the_leeway(self) -> None:
        token, leeway = ISSUER.token(NOW), timedelta(minutes=2)
        verify(token, now=NOW - leeway, leeway=leeway)
        assert fault(token, now=NOW - leeway - SECOND, leeway=leeway) is TokenFault.NOT_YET_VALID
        verify(token, now=NOW + HOUR + leeway - SECOND, leeway=leeway)
        assert fault(token, now=NOW + HOUR + leeway, leeway=leeway) is TokenFault.EXPIRED

    def test_may_be_limited(self) -> None:
        token = ISSUER.token(NOW)
        verify(token, longest_life=HOUR)
        for now in (NOW, NOW + HOUR / 2):
            assert fault(token, now=now, longest_life=HOUR - SECOND) is TokenFault.LONG_LIVED
        undated = ISSUER.token(NOW, iat=None, nbf=None)
        assert fault(undated, longest_life=HOUR - SECOND) is TokenFault.LONG_LIVED
        verify(undated, now=NOW + SECOND, longest_life=HOUR - SECOND)


@pytest.mark.parametrize(
    "changes", [{"exp": None}, {"exp": "x"}, {"aud": "vault"}, {"iss": "x"}, {"exp": 1}, {"nbf": 2**32}]
)
def test_a_refusal_holds_nothing_of_the_token_and_tells_strangers_nothing(changes: dict[str, JSON]) -> None:
    token = ISSUER.token(NOW, **changes)
    with pytest.raises(NotAuthenticated) as caught:
        verify(token)
    error = caught.value
    assert (error.code, error.public) == (Code.NOT_AUTHENTICATED, "not authenticated")
    told = "".join(traceback.format_exception(error)) + repr(vars(error))
    assert not [part for part in token.split(".") if part in told]


def test_a_refusal_crosses_to_another_process() -> None:
    refused = TokenRefused(TokenFault.EXPIRED, "long ago")
    again = pickle.loads(pickle.dumps(refused))  # noqa: S301  # our own bytes
    assert (type(again), again.fault, str(again)) == (TokenRefused, TokenFault.EXPIRED, str(refused))


def test_claims_do_not_print_what_they_say() -> None:
    assert "blue" not in repr(verify(ISSUER.token(NOW, colour="blue")))


class TestTheClaimedEnd:
    def test_is_read_without_a_key(self) -> None:
        assert claimed_end(TokenIssuer(place=7).token(NOW)) == NOW + HOUR

    @pytest.mark.parametrize("changes", [{"exp": None}, {"exp": "x"}, {"exp": 1e300}])
    def test_is_unknown_if_it_is_not_said(self, changes: dict[str, JSON]) -> None:
        assert claimed_end(ISSUER.token(NOW, **changes)) is None

    @pytest.mark.parametrize("text", ["", "garbage", "a.b.c", "eyJ.eyJ.", "x" * (MAX_TOKEN + 1)])
    def test_of_no_token_is_unknown(self, text: str) -> None:
        assert claimed_end(text) is None


class TestWhatATokenSaysOfItself:
    def test_is_read_without_a_key(self) -> None:
        said = unproven(TokenIssuer(place=7).token(NOW, sub="root"))
        assert (said.header["alg"], said.payload["sub"]) == ("ES256", "root")

    def test_is_not_read_from_what_could_never_be_accepted(self) -> None:
        unsigned = ISSUER.sign(ISSUER.payload(NOW), header={"alg": "none"})
        for text, reason in ((unsigned, TokenFault.ALGORITHM), ("a.b", TokenFault.MALFORMED)):
            with pytest.raises(TokenRefused) as caught:
                unproven(text)
            assert caught.value.fault is reason
