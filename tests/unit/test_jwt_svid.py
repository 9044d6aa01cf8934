"""JWT-SVIDs: each rule of the standard refuses a token, which passes once it is mended (JWT-SVID 2 to 5)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from istio_auth.errors import ConfigurationError
from istio_auth.jwks import ALGORITHMS, KeySet
from istio_auth.jwt_bundle import JWTBundle, JWTBundleSet, JWTBundleSource
from istio_auth.jwt_svid import JWTSVID, validate_jwt_svid
from istio_auth.spiffe_id import SpiffeID, TrustDomain
from istio_auth.strict_json import JSON
from istio_auth.tokens import TokenFault, TokenRefused
from istio_auth.tokens.locations import DEFAULT_LOCATIONS, find_token
from tests.fakes.token_issuer import TokenIssuer, base64url

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)
WEB = "spiffe://cluster.local/ns/default/sa/web"
AUDIENCE = "spiffe://cluster.local/ns/default/sa/db"
LOCAL = TokenIssuer()
RSA = TokenIssuer("RS256")
FEDERATED = TokenIssuer(place=1)


def bundle(*issuers: TokenIssuer, of: str = "cluster.local") -> JWTBundle:
    entries: list[JSON] = [issuer.jwk(use="jwt-svid", alg=None) for issuer in issuers]
    return JWTBundle.from_document(TrustDomain(of), {"keys": entries})


BUNDLES = JWTBundleSet((bundle(LOCAL, RSA), bundle(FEDERATED, of="partner.test")))


def payload(**changes: JSON) -> dict[str, JSON]:
    begin = int(NOW.timestamp())
    made: dict[str, JSON] = {"sub": WEB, "aud": [AUDIENCE], "exp": begin + 300, "iat": begin}
    return {name: value for name, value in (made | changes).items() if value is not None}


def token(issuer: TokenIssuer = LOCAL, *, header: Mapping[str, JSON] | bytes | None = None, **changes: JSON) -> str:
    return issuer.sign(payload(**changes), header=header)


def validate(text: str, bundles: JWTBundleSource = BUNDLES, **changes: Any) -> JWTSVID:
    asked: dict[str, Any] = {"audience": AUDIENCE, "now": NOW, "leeway": timedelta()}
    return validate_jwt_svid(text, bundles, **(asked | changes))


def fault(text: str, bundles: JWTBundleSource = BUNDLES, **changes: Any) -> TokenFault:
    with pytest.raises(TokenRefused) as caught:
        validate(text, bundles, **changes)
    return caught.value.fault


def test_a_good_token_proves_who_made_it() -> None:
    text = token(colour="blue")
    svid = validate(text)
    assert (svid.id, svid.token) == (SpiffeID.parse(WEB), text)
    assert (svid.audiences, svid.expires_at) == ((AUDIENCE,), NOW + timedelta(minutes=5))
    assert (svid.claims.members["colour"], svid.hint) == ("blue", "")


class TestTheForm:
    def test_jw_01_is_compact_and_no_json(self) -> None:
        good = token()
        head, claims, signature = good.split(".")
        flattened = json.dumps({"protected": head, "payload": claims, "signature": signature})
        general = json.dumps({"payload": claims, "signatures": [{"protected": head, "signature": signature}]})
        for text in (flattened, general, f"{head}.{claims}", f"{good}.", f"{good}.{signature}", "", f"Bearer {good}"):
            assert fault(text) is TokenFault.MALFORMED, text
        validate(good)

    @pytest.mark.parametrize(
        "member",
        ["jku", "jwk", "x5u", "x5c", "x5t", "x5t#S256", "cty", "zip", "enc", "ALG", "Kid", "iss", "", "é"],
    )
    def test_jw_02_has_a_header_with_nothing_but_alg_kid_and_typ(self, member: str) -> None:
        assert fault(token(header={member: "x"})) is TokenFault.HEADER
        validate(token(header={"typ": "JWT"}))

    @pytest.mark.parametrize("header", [{"crit": ["exp"]}, {"crit": []}, {"b64": True}], ids=str)
    def test_jw_02_has_no_critical_header(self, header: dict[str, JSON]) -> None:
        assert fault(token(header=header)) is TokenFault.EXTENSION

    def test_jw_02_keeps_its_header_closed_when_nothing_else_is_wrong_with_what_is_in_it(self) -> None:
        # The key itself and a name for it are harmless to whoever ignores them; the set is closed all the same.
        assert fault(token(header={"jwk": LOCAL.jwk()})) is TokenFault.HEADER
        assert fault(token(header={"x5t": None, "cty": "JWT"})) is TokenFault.HEADER


class TestTheAlgorithm:
    @pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
    def test_jw_03_is_one_of_the_nine(self, algorithm: str) -> None:
        issuer = TokenIssuer(algorithm)
        assert validate(token(issuer), bundle(issuer)).id.path == "/ns/default/sa/web"

    def test_jw_03_are_no_more_than_nine(self) -> None:
        family = [f"{kind}{size}" for kind in ("RS", "ES", "PS") for size in (256, 384, 512)]
        assert sorted(ALGORITHMS) == sorted(family)

    @pytest.mark.parametrize("algorithm", ["none", "None", "HS256", "EdDSA", "ES256K", "RS1", "es256", "", None, 7])
    def test_jw_03_is_no_other(self, algorithm: JSON) -> None:
        assert fault(token(header={"alg": algorithm})) is TokenFault.ALGORITHM

    def test_jw_03_is_none_that_makes_a_secret_of_a_public_key(self) -> None:
        signed = token(header={"alg": "HS256"}).rpartition(".")[0]
        secret = LOCAL.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        mac = jwt.get_algorithm_by_name("HS256").sign(signed.encode(), secret)
        assert fault(f"{signed}.{base64url(mac)}") is TokenFault.ALGORITHM

    def test_jw_10_is_looked_at_before_anything_else(self) -> None:
        asked = []

        class Watched:
            def bundle(self, trust_domain: TrustDomain) -> JWTBundle:
                asked.append(trust_domain)
                return BUNDLES.bundle(trust_domain)

        for algorithm in ("HS256", "EdDSA"):  # the other one is good for tokens that are no JWT-SVIDs
            everything: dict[str, JSON] = {"alg": algorithm, "cty": "x", "typ": "x"}
            assert fault(token(header=everything, sub="x", aud="x", exp=1), Watched()) is TokenFault.ALGORITHM
            assert fault(token(header={"alg": algorithm}), Watched()) is TokenFault.ALGORITHM
        garbage = LOCAL.sign(b"no claims at all", header={"alg": "HS256"})
        assert fault(garbage, Watched()) is TokenFault.ALGORITHM
        assert asked == []
        validate(token(), Watched())
        assert asked == [TrustDomain("cluster.local")]


class TestTheKeyID:
    def test_jw_04_is_optional_and_every_key_that_fits_is_tried(self) -> None:
        strangers = [TokenIssuer(place=place) for place in (2, 3, 4)]
        many = bundle(RSA, *strangers, LOCAL)
        assert validate(token(header={"kid": None}), many).id.path
        assert validate(token(RSA, header={"kid": None}), many).id.path
        assert fault(token(header={"kid": None}), bundle(RSA, *strangers)) is TokenFault.UNKNOWN_KEY

    def test_jw_04_names_a_key_if_it_is_there(self) -> None:
        assert fault(token(header={"kid": "x"})) is TokenFault.UNKNOWN_KEY
        assert fault(token(header={"kid": RSA.key_id})) is TokenFault.ALGORITHM
        assert fault(token(header={"kid": 7})) is TokenFault.MALFORMED


class TestTheType:
    @pytest.mark.parametrize("kind", ["JWT", "JOSE"])
    def test_jw_05_is_one_of_two_or_absent(self, kind: str) -> None:
        validate(token(header={"typ": kind}))
        validate(token(header={"typ": None}))

    @pytest.mark.parametrize("kind", ["jwt", "Jose", "wit+jwt", "at+jwt", "application/JWT", "JWS", "", 7, ["JWT"], {}])
    def test_jw_05_is_no_other(self, kind: JSON) -> None:
        assert fault(token(header={"typ": kind})) is TokenFault.HEADER

    def test_jw_05_is_not_nothing(self) -> None:
        header = json.dumps({"alg": "ES256", "kid": LOCAL.key_id, "typ": None}).encode()
        assert fault(token(header=header)) is TokenFault.HEADER


class TestTheSubject:
    @pytest.mark.parametrize(
        "subject",
        [
            None,
            "",
            "web",
            "system:serviceaccount:default:web",
            "https://cluster.local/ns/default/sa/web",
            "SPIFFE://cluster.local/x",
            "spiffe://CLUSTER.local/x",
            "spiffe://cluster.local/x/",
            "spiffe://cluster.local//x",
            "spiffe://cluster.local/%78",
            "spiffe://cluster.local/x\n",
            "spiffe://cluster.local/../x",
            "spiffe://cluster.local:80/x",
            7,
            [WEB],
            {"id": WEB},
        ],
        ids=str,
    )
    def test_jw_06_is_a_spiffe_id(self, subject: JSON) -> None:
        assert fault(token(sub=subject)) is TokenFault.CLAIM

    def test_jw_06_is_that_of_a_workload(self) -> None:
        assert fault(token(sub="spiffe://cluster.local")) is TokenFault.CLAIM


class TestTheAudience:
    @pytest.mark.parametrize("audience", [None, [], ""])
    def test_jw_07_is_there(self, audience: JSON) -> None:
        assert fault(token(aud=audience)) in {TokenFault.CLAIM, TokenFault.AUDIENCE}

    @pytest.mark.parametrize("audience", [AUDIENCE, [AUDIENCE], ["other", AUDIENCE]])
    def test_jw_08_has_us_in_it_as_a_text_or_in_a_list(self, audience: JSON) -> None:
        validate(token(aud=audience))

    @pytest.mark.parametrize("audience", ["other", ["other"], [AUDIENCE.upper()], [AUDIENCE[:-1]], [f"{AUDIENCE}/"]])
    def test_jw_08_without_us_is_refused(self, audience: JSON) -> None:
        assert fault(token(aud=audience)) is TokenFault.AUDIENCE

    @pytest.mark.parametrize("audience", [7, {AUDIENCE: 1}, [AUDIENCE, 7]])
    def test_jw_08_has_texts(self, audience: JSON) -> None:
        assert fault(token(aud=audience)) is TokenFault.CLAIM

    def test_jw_08_is_asked_for_by_somebody(self) -> None:
        with pytest.raises(ConfigurationError):
            validate(token(aud=[""]), audience="")


class TestTheTimes:
    def test_jw_09_have_an_end(self) -> None:
        assert fault(token(exp=None)) is TokenFault.CLAIM
        assert fault(token(exp="2030")) is TokenFault.CLAIM

    def test_jw_09_end_a_token(self) -> None:
        end = NOW + timedelta(minutes=5)
        validate(token(), now=end - timedelta(seconds=1))
        assert fault(token(), now=end) is TokenFault.EXPIRED

    def test_jw_09_allow_for_clocks_that_differ_by_a_minute_and_no_more(self) -> None:
        late = NOW + timedelta(minutes=6)
        validate_jwt_svid(token(), BUNDLES, audience=AUDIENCE, now=late - timedelta(seconds=1))
        with pytest.raises(TokenRefused):
            validate_jwt_svid(token(), BUNDLES, audience=AUDIENCE, now=late)

    def test_jw_17_begin_a_token(self) -> None:
        later = int(NOW.timestamp()) + 300
        good = token(nbf=later, exp=later + 300)
        assert fault(good) is TokenFault.NOT_YET_VALID
        with pytest.raises(TokenRefused):
            validate_jwt_svid(good, BUNDLES, audience=AUDIENCE, now=NOW)
        validate(good, now=NOW + timedelta(minutes=5))


class TestOtherClaims:
    def test_jw_11_may_name_the_token_which_may_come_again(self) -> None:
        good = token(jti="once")
        assert validate(good) == validate(good)

    def test_jw_12_may_be_any(self) -> None:
        svid = validate(token(iss="https://elsewhere.test", scope=["a"], nested={"a": {"b": None}}))
        assert svid.claims.members["nested"] == {"a": {"b": None}}
        with pytest.raises(TypeError):
            svid.claims.members["sub"] = "x"  # type: ignore[index]  # which is the point


def test_jw_13_comes_as_a_bearer_token_over_http_and_grpc_alike() -> None:
    good = token()
    for name in ("Authorization", "authorization"):  # the latter is how gRPC writes it
        found = find_token(DEFAULT_LOCATIONS, [(name, f"Bearer {good}")])
        assert found is not None
        assert str(validate(found.token).id) == WEB


class TestTheBundle:
    def test_jw_16_is_that_of_the_subjects_trust_domain(self) -> None:
        theirs = "spiffe://partner.test/web"
        assert str(validate(token(FEDERATED, sub=theirs)).id) == theirs
        assert str(validate(token(LOCAL)).id) == WEB

    @pytest.mark.parametrize("named", [True, False], ids=["kid", "no-kid"])
    def test_jw_16_is_never_pooled_with_another(self, named: bool) -> None:
        header: dict[str, JSON] = {} if named else {"kid": None}
        local_by_federated = token(FEDERATED, header=header)
        federated_by_local = token(LOCAL, header=header, sub="spiffe://partner.test/web")
        for forged in (local_by_federated, federated_by_local):
            assert fault(forged) is TokenFault.UNKNOWN_KEY
        assert validate(local_by_federated, bundle(LOCAL, FEDERATED))  # what pooling would do

    def test_jw_16_is_not_found_by_the_name_of_a_key_that_both_have(self) -> None:
        shared = JWTBundleSet(
            (
                JWTBundle(TrustDomain("cluster.local"), LOCAL.keys(kid="1")),
                JWTBundle(TrustDomain("partner.test"), FEDERATED.keys(kid="1")),
            )
        )
        assert fault(token(FEDERATED, header={"kid": "1"}), shared) is TokenFault.SIGNATURE
        validate(token(LOCAL, header={"kid": "1"}), shared)

    def test_jw_16_that_is_missing_makes_a_token_worthless(self) -> None:
        assert fault(token(sub="spiffe://elsewhere.test/web")) is TokenFault.FOREIGN_TRUST_DOMAIN
        assert fault(token(), JWTBundleSet()) is TokenFault.FOREIGN_TRUST_DOMAIN

    def test_bd_05_without_keys_makes_every_token_worthless(self) -> None:
        for header in ({}, {"kid": None}):
            assert fault(token(header=header), JWTBundle(TrustDomain("cluster.local"))) is TokenFault.UNKNOWN_KEY


def test_what_was_signed_can_not_be_changed() -> None:
    head, _, signature = token().split(".")
    other = base64url(json.dumps(payload(sub="spiffe://cluster.local/admin")).encode())
    assert fault(f"{head}.{other}.{signature}") is TokenFault.SIGNATURE
    unnamed = token(header={"kid": None})
    assert fault(unnamed[:-4] + ("AAAA" if unnamed[-4:] != "AAAA" else "BBBB")) is TokenFault.UNKNOWN_KEY


def test_nobody_reads_the_token_in_what_is_printed() -> None:
    text = token()
    svid = validate(text)
    assert not [part for part in text.split(".") if part in f"{svid} {svid!r}"]
    with pytest.raises(TokenRefused) as caught:
        validate(text, now=NOW + timedelta(hours=1))
    assert not [part for part in text.split(".") if part in str(caught.value)]


class TestOfOurOwnAgent:
    def test_is_read_without_keys(self) -> None:
        text = token(TokenIssuer(place=9), aud="db", colour="blue")
        svid = JWTSVID.of_agent(text, hint="internal")
        assert (str(svid.id), svid.audiences, svid.hint) == (WEB, ("db",), "internal")
        assert (svid.expires_at, svid.claims.members["colour"]) == (NOW + timedelta(minutes=5), "blue")

    @pytest.mark.parametrize(
        ("header", "changes"),
        [
            ({"jku": "x"}, {}),
            ({"alg": "HS256"}, {}),
            ({"alg": "EdDSA"}, {}),
            ({"typ": "x"}, {}),
            ({}, {"sub": None}),
            ({}, {"sub": "spiffe://cluster.local"}),
            ({}, {"aud": None}),
            ({}, {"aud": []}),
            ({}, {"exp": None}),
            ({}, {"exp": "x"}),
        ],
        ids=str,
    )
    def test_has_the_form_of_the_standard_all_the_same(self, header: dict[str, JSON], changes: dict[str, JSON]) -> None:
        with pytest.raises(TokenRefused):
            JWTSVID.of_agent(LOCAL.sign(payload(**changes), header=header))
        JWTSVID.of_agent(token())


def test_an_x509_bundle_validates_no_token() -> None:
    keys: Any = KeySet()
    with pytest.raises((TypeError, AttributeError)):
        validate(token(), keys)
