"""Whatever is signed as a JWT-SVID, or served as a JWT bundle: it keeps the standard, or is refused."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from istio_auth.errors import InvalidBundle
from istio_auth.jwt_bundle import JWTBundle, JWTBundleSet
from istio_auth.jwt_svid import JWTSVID, validate_jwt_svid
from istio_auth.spiffe_id import TrustDomain
from istio_auth.strict_json import JSON
from istio_auth.tokens import TokenRefused, unproven
from tests.fakes.token_issuer import TokenIssuer
from tests.property.test_tokens import ANY_JSON, KEY_NAMES

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)
TD, WEB, AUDIENCE = TrustDomain("cluster.local"), "spiffe://cluster.local/web", "db"
ISSUER, OTHER = TokenIssuer(place=61), TokenIssuer(place=62)
BUNDLES = JWTBundleSet((JWTBundle(TD, ISSUER.keys()), JWTBundle(TrustDomain("partner.test"), OTHER.keys())))
HEADER_NAMES = st.sampled_from(["alg", "kid", "typ", "Typ", "cty", "x5t", "jku"]) | st.text(max_size=5)
SUBJECTS = st.text("spife:/clutroa.-_%AZ", max_size=30).map("spiffe://".__add__) | st.sampled_from(
    [WEB, "spiffe://partner.test/web", "spiffe://cluster.local", "spiffe://cluster.local/"]
)


def judged(token: str) -> JWTSVID | None:
    try:
        return validate_jwt_svid(token, BUNDLES, audience=AUDIENCE, now=NOW)
    except TokenRefused:
        return None


def payload(**changes: JSON) -> dict[str, JSON]:
    made: dict[str, JSON] = {"sub": WEB, "aud": [AUDIENCE], "exp": int((NOW + timedelta(minutes=5)).timestamp())}
    return made | changes


@given(st.dictionaries(HEADER_NAMES, ANY_JSON | st.sampled_from(["JWT", "JOSE", "jwt"]), max_size=3))
def test_a_header_with_anything_else_in_it_is_refused(changes: dict[str, JSON]) -> None:
    header: dict[str, JSON] = {"alg": "ES256", "kid": ISSUER.key_id}
    token = ISSUER.sign(payload(), header=json.dumps(header | changes).encode())
    if judged(token) is not None:
        said = unproven(token).header
        assert said.keys() <= {"alg", "kid", "typ"}
        assert said.get("typ", "JWT") in ("JWT", "JOSE")


@given(SUBJECTS | ANY_JSON, st.sampled_from([ISSUER, OTHER]))
def test_a_key_vouches_for_workloads_of_its_own_trust_domain_alone(subject: JSON, issuer: TokenIssuer) -> None:
    if (svid := judged(issuer.sign(payload(sub=subject)))) is not None:
        assert str(svid.id) == subject
        assert svid.id.path
        assert svid.id.trust_domain.name == {ISSUER: "cluster.local", OTHER: "partner.test"}[issuer]


@given(st.dictionaries(st.sampled_from(["aud", "exp", "nbf", "iat", "iss", "jti"]), ANY_JSON))
def test_claims_keep_the_standard_or_are_refused(changes: dict[str, JSON]) -> None:
    token = ISSUER.sign(json.dumps(payload(**changes)).encode())
    if (svid := judged(token)) is not None:
        assert AUDIENCE in svid.audiences
        assert svid.expires_at > NOW - timedelta(minutes=1)
    with suppress(TokenRefused):
        assert JWTSVID.of_agent(token).audiences


@given(
    st.lists(
        st.dictionaries(KEY_NAMES, ANY_JSON | st.sampled_from(["RSA", "EC", "jwt-svid", "P-256", "AQAB"])) | ANY_JSON,
        max_size=3,
    )
    | ANY_JSON
)
def test_any_document_is_a_bundle_or_a_clear_refusal(entries: JSON) -> None:
    good: JSON = ISSUER.jwk(use="jwt-svid", alg=None)
    for keys in (entries, [*entries, good] if isinstance(entries, list) else entries):
        for text in (json.dumps(keys), json.dumps({"keys": keys})):
            for read in (JWTBundle.from_json, JWTBundle.from_workload_api):
                with suppress(InvalidBundle):
                    assert all(key.key_id for key in read(TD, text).keys.keys)
        with suppress(InvalidBundle):
            JWTBundleSet.from_json(json.dumps({"trust_domains": {"td": {"keys": keys}}}))
