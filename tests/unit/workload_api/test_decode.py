"""What the Workload API answers is taken whole or not at all, and only if it keeps to its standard."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from google.protobuf.message import Message

from istio_auth.bundle import BundleSet, TrustBundle
from istio_auth.errors import VerificationError
from istio_auth.jwt_bundle import JWTBundleSet
from istio_auth.jwt_svid import JWTSVID
from istio_auth.proto import workload_api_pb2 as messages
from istio_auth.spiffe_id import SpiffeID, TrustDomain
from istio_auth.strict_json import JSON
from istio_auth.tokens import TokenRefused
from istio_auth.workload_api import decode
from istio_auth.workload_api.decode import InvalidResponse
from istio_auth.x509_source import X509Context
from tests.fakes import workload_api as api
from tests.fakes.authority import FakeAuthority
from tests.fakes.token_issuer import TokenIssuer
from tests.vectors.x509_svid import FEDERATED, LOCAL, STRANGER, sound_intermediate

WEB, DB = LOCAL.svid(), LOCAL.svid("/ns/default/sa/db")
BUNDLE = LOCAL.bundle()
GOOD = api.entry(WEB, BUNDLE)
ISSUER = TokenIssuer()
OTHER_ISSUER = TokenIssuer(place=1)
AUDIENCE = "spiffe://cluster.local/ns/default/sa/db"


def token(**changes: JSON) -> str:
    said: dict[str, JSON] = {"sub": str(WEB.id), "aud": [AUDIENCE]}
    return ISSUER.token(datetime.now(UTC), **(said | changes))


def jwt_entry(**changes: str) -> messages.JWTSVID:
    fields = {"spiffe_id": str(WEB.id), "svid": token()} | changes
    return messages.JWTSVID(**fields)


def jwt_svids(*entries: messages.JWTSVID, spiffe_id: SpiffeID | None = None) -> tuple[JWTSVID, ...]:
    response = messages.JWTSVIDResponse(svids=entries)
    return decode.jwt_svids(response, audience=[AUDIENCE], spiffe_id=spiffe_id)


def x509_context(response: messages.X509SVIDResponse) -> X509Context:
    """What an answer says in which there is nothing to leave out."""
    decoded = decode.x509_context(response)
    assert decoded.left_out == ()
    return decoded.value


def x509_bundles(response: messages.X509BundlesResponse) -> BundleSet:
    decoded = decode.x509_bundles(response)
    assert decoded.left_out == ()
    return decoded.value


def jwt_bundles(response: messages.JWTBundlesResponse) -> JWTBundleSet:
    decoded = decode.jwt_bundles(response)
    assert decoded.left_out == ()
    return decoded.value


def validated(**changes: JSON) -> messages.ValidateJWTSVIDResponse:
    response = messages.ValidateJWTSVIDResponse(spiffe_id=str(WEB.id))
    response.claims.update({"sub": str(WEB.id), "aud": [AUDIENCE], "exp": 1e9, **changes})
    return response


def test_a_good_answer_gives_everything_that_is_in_it() -> None:
    between = sound_intermediate()
    longer = between.svid("/ns/default/sa/longer")
    response = api.x509(GOOD, api.entry(longer, BUNDLE, hint="second"), federated=[FEDERATED.bundle()])
    context = x509_context(response)
    assert [svid.id for svid in context.svids] == [WEB.id, longer.id]
    assert context.svids[1].chain == longer.chain
    assert len(longer.chain) == 2
    assert context.svids[1].hint == "second"
    assert context.svid.private_key.private_numbers() == WEB.private_key.private_numbers()
    assert context.bundle(LOCAL.trust_domain).x509_authorities == BUNDLE.x509_authorities
    assert context.bundle(FEDERATED.trust_domain).x509_authorities == FEDERATED.bundle().x509_authorities


def test_wa_04_an_answer_is_the_whole_state_and_nothing_is_added_to_it() -> None:
    first = x509_context(api.x509(GOOD, api.entry(DB, BUNDLE), federated=[FEDERATED.bundle()]))
    assert len(first.svids) == 2
    second = x509_context(api.x509(GOOD))
    assert [svid.id for svid in second.svids] == [WEB.id]


def test_wa_05_what_is_not_in_an_answer_is_redacted() -> None:
    x509_context(api.x509(GOOD, federated=[FEDERATED.bundle()]))
    with pytest.raises(VerificationError, match=r"partner\.test is not among the trusted domains"):
        x509_context(api.x509(GOOD)).bundle(FEDERATED.trust_domain)


@pytest.mark.parametrize("field", ["spiffe_id", "x509_svid", "x509_svid_key", "bundle"])
def test_wa_09_an_svid_without_a_mandatory_field_spoils_the_whole_answer(field: str) -> None:
    lacking = api.entry(DB, BUNDLE)
    lacking.ClearField(field)
    with pytest.raises(InvalidResponse, match=rf"its field {field} must not be empty \(WA-09\)"):
        x509_context(api.x509(GOOD, lacking))
    assert x509_context(api.x509(GOOD, api.entry(DB, BUNDLE)))


@pytest.mark.parametrize(
    ("read", "empty", "field"),
    [
        (decode.x509_context, messages.X509SVIDResponse(), "svids"),
        (decode.x509_bundles, messages.X509BundlesResponse(), "bundles"),
        (decode.jwt_bundles, messages.JWTBundlesResponse(), "bundles"),
        (lambda empty: decode.jwt_svids(empty, audience=["a"], spiffe_id=None), messages.JWTSVIDResponse(), "svids"),
        (decode.validated, messages.ValidateJWTSVIDResponse(), "spiffe_id"),
        (decode.validated, messages.ValidateJWTSVIDResponse(spiffe_id=str(WEB.id)), "claims"),
    ],
)
def test_wa_09_an_answer_without_a_mandatory_field_is_refused(
    read: Callable[[Message], object], empty: Message, field: str
) -> None:
    with pytest.raises(InvalidResponse, match=f"its field {field} must not be empty"):
        read(empty)


@pytest.mark.parametrize("field", ["spiffe_id", "svid"])
def test_wa_09_a_jwt_svid_without_a_mandatory_field_spoils_the_whole_answer(field: str) -> None:
    with pytest.raises(InvalidResponse, match=f"its field {field} must not be empty"):
        jwt_svids(jwt_entry(), jwt_entry(**{field: ""}))


def test_wa_10_of_svids_with_the_same_hint_the_first_counts() -> None:
    third = LOCAL.svid("/third")
    entries = [api.entry(svid, BUNDLE, hint="same") for svid in (WEB, DB)]
    context = x509_context(api.x509(*entries, api.entry(third, BUNDLE)))
    assert [svid.id for svid in context.svids] == [WEB.id, third.id]
    assert [svid.token for svid in jwt_svids(jwt_entry(hint="same"), jwt_entry(hint="same"))] != []
    assert len(jwt_svids(jwt_entry(hint="same"), jwt_entry(hint="same"))) == 1


def test_wa_10_no_hint_is_not_the_same_hint() -> None:
    assert len(x509_context(api.x509(GOOD, api.entry(DB, BUNDLE))).svids) == 2


def test_wa_11_a_hint_has_at_most_1024_bytes() -> None:
    longest = "\u00e9" * 512
    assert x509_context(api.x509(api.entry(WEB, BUNDLE, hint=longest))).svid.hint == longest
    assert jwt_svids(jwt_entry(hint=longest))[0].hint == longest
    for refused in (longest + "a", "\u00e9" * 1000):
        with pytest.raises(InvalidResponse, match="a hint has at most 1024 bytes"):
            x509_context(api.x509(api.entry(WEB, BUNDLE, hint=refused)))
        with pytest.raises(InvalidResponse, match="a hint has at most 1024 bytes"):
            jwt_svids(jwt_entry(hint=refused))


def test_wa_12_the_first_svid_is_the_default() -> None:
    assert x509_context(api.x509(api.entry(DB, BUNDLE), GOOD)).svid.id == DB.id
    assert x509_context(api.x509(GOOD, api.entry(DB, BUNDLE))).svid.id == WEB.id


def _key(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey, shape: PrivateFormat) -> bytes:
    return key.private_bytes(Encoding.DER, shape, NoEncryption())


def _ec(svid_key: object) -> ec.EllipticCurvePrivateKey:
    assert isinstance(svid_key, ec.EllipticCurvePrivateKey)
    return svid_key


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"spiffe_id": str(DB.id)}, "the leaf certificate names spiffe://cluster.local/ns/default/sa/web, not"),
        ({"spiffe_id": "spiffe://cluster.local/ns/default/sa/WEB"}, "the leaf certificate names"),
        ({"spiffe_id": "https://cluster.local/web"}, "is no SPIFFE ID"),
        ({"x509_svid_key": GOOD.x509_svid + GOOD.x509_svid_key}, "PKCS#8"),
        ({"x509_svid_key": api.entry(DB, BUNDLE).x509_svid_key}, "the private key is not the key of the leaf"),
        ({"x509_svid_key": _key(_ec(WEB.private_key), PrivateFormat.TraditionalOpenSSL)}, "PKCS#8"),
        ({"x509_svid_key": GOOD.x509_svid_key + b"\0"}, "does not parse"),
        ({"x509_svid_key": GOOD.x509_svid_key[:-1]}, "does not parse"),
        ({"x509_svid_key": WEB.key_pem()}, "PKCS#8"),
        (
            {
                "x509_svid_key": _ec(WEB.private_key).private_bytes(
                    Encoding.DER, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
                )
            },
            "not encrypted",
        ),
        ({"x509_svid_key": _key(ed25519.Ed25519PrivateKey.generate(), PrivateFormat.PKCS8)}, "not allowed"),
        ({"x509_svid": GOOD.x509_svid[:-1]}, "does not parse"),
        ({"x509_svid": GOOD.x509_svid + b"\0"}, "expected a certificate in DER"),
        ({"x509_svid": WEB.chain_pem()}, "expected a certificate in DER"),
        ({"bundle": GOOD.bundle[:-1]}, "does not parse"),
        ({"bundle": GOOD.bundle + b"\0"}, "expected a certificate in DER"),
        ({"bundle": BUNDLE.to_pem()}, "expected a certificate in DER"),
    ],
)
def test_an_svid_that_does_not_hold_together_spoils_the_whole_answer(changes: dict[str, object], why: str) -> None:
    with pytest.raises(InvalidResponse, match=why):
        x509_context(api.x509(api.entry(DB, BUNDLE), api.entry(WEB, BUNDLE, **changes)))
    assert x509_context(api.x509(api.entry(DB, BUNDLE), GOOD))


@pytest.mark.parametrize("change", [{"ca": True}, {"key_cert_sign": True}, {"usage_present": False}])
def test_an_svid_that_every_peer_would_refuse_is_refused_at_once(change: dict[str, object]) -> None:
    with pytest.raises(InvalidResponse, match=r"CA certificate as leaf|key usage"):
        x509_context(api.x509(api.entry(LOCAL.svid(**change), BUNDLE)))  # type: ignore[arg-type]  # of Leaf


@pytest.mark.parametrize(
    "name",
    ["partner.test", "spiffe://partner.test/", "spiffe://partner.test/ca", "spiffe://PARTNER.test", "", "spiffe://"],
)
def test_bundles_have_the_name_of_a_trust_domains_spiffe_id(name: str) -> None:
    keys, certificates = OTHER_ISSUER.jwks().encode(), api.der(FEDERATED.bundle())
    decoded = decode.x509_context(messages.X509SVIDResponse(svids=[GOOD], federated_bundles={name: certificates}))
    assert [bundle.trust_domain for bundle in decoded.value.bundles] == [LOCAL.trust_domain]
    assert f"the bundle that came as {name!r} is left out" in str(decoded.left_out[0])
    with pytest.raises(InvalidResponse, match="is left out"):
        x509_bundles(messages.X509BundlesResponse(bundles={name: certificates}))
    with pytest.raises(InvalidResponse, match="is left out"):
        jwt_bundles(messages.JWTBundlesResponse(bundles={name: keys}))


def test_a_federated_bundle_that_can_not_be_read_keeps_nothing_else_away() -> None:
    good, certificates = api.der(FEDERATED.bundle()), api.der(LOCAL.bundle())
    for bad in (good[:-1], good + b"\0", b"junk", FEDERATED.bundle().to_pem()):
        bundles = {"spiffe://partner.test": bad, "spiffe://other.test": good}
        context = decode.x509_context(messages.X509SVIDResponse(svids=[GOOD], federated_bundles=bundles))
        assert context.value.svid.id == WEB.id
        assert {str(bundle.trust_domain) for bundle in context.value.bundles} == {"cluster.local", "other.test"}
        (reason,) = context.left_out
        assert "the bundle that came as 'spiffe://partner.test' is left out" in str(reason)
        with pytest.raises(VerificationError, match="not among the trusted domains"):
            context.value.bundle(FEDERATED.trust_domain)
        bundles = {"spiffe://partner.test": bad, "spiffe://cluster.local": certificates}
        alone = decode.x509_bundles(messages.X509BundlesResponse(bundles=bundles))
        assert [str(bundle.trust_domain) for bundle in alone.value] == ["cluster.local"]
        assert len(alone.left_out) == 1


def test_a_foreign_key_set_that_can_not_be_used_keeps_nothing_else_away() -> None:
    ours = ISSUER.jwks().encode()
    shown = json.dumps({"keys": [OTHER_ISSUER.jwk(d="AAAA")]}).encode()
    for bad in (shown, b"<html>", b"[]", b""):
        bundles = {"spiffe://cluster.local": ours, "spiffe://partner.test": bad}
        decoded = decode.jwt_bundles(messages.JWTBundlesResponse(bundles=bundles))
        assert [str(bundle.trust_domain) for bundle in decoded.value] == ["cluster.local"]
        assert "'spiffe://partner.test' is left out" in str(decoded.left_out[0])


def test_a_federated_trust_domain_without_authorities_is_held_and_not_trusted() -> None:
    context = x509_context(api.x509(GOOD, federated=[TrustBundle(FEDERATED.trust_domain)]))
    assert context.bundle(FEDERATED.trust_domain).x509_authorities == ()


def test_a_trust_domain_with_two_different_bundles_has_none() -> None:
    other = TrustBundle(LOCAL.trust_domain, STRANGER.bundle().x509_authorities)
    for response in (api.x509(GOOD, api.entry(DB, other)), api.x509(GOOD, federated=[other])):
        with pytest.raises(InvalidResponse, match=r"two different bundles came for cluster\.local"):
            x509_context(response)
    assert x509_context(api.x509(GOOD, api.entry(DB, BUNDLE), federated=[BUNDLE]))


def test_authorities_in_another_order_are_the_same_bundle() -> None:
    both = BUNDLE.x509_authorities + STRANGER.bundle().x509_authorities
    there, back = TrustBundle(LOCAL.trust_domain, both), TrustBundle(LOCAL.trust_domain, both[::-1])
    context = x509_context(api.x509(api.entry(WEB, there), api.entry(DB, back)))
    assert set(context.bundle(LOCAL.trust_domain).x509_authorities) == set(both)


def test_wa_15_bundles_are_read_one_by_one_and_kept_apart() -> None:
    bundles = x509_bundles(api.x509_bundles(BUNDLE, FEDERATED.bundle()))
    assert bundles.bundle(LOCAL.trust_domain).x509_authorities == BUNDLE.x509_authorities
    assert bundles.bundle(FEDERATED.trust_domain).x509_authorities == FEDERATED.bundle().x509_authorities


def test_wa_20_a_bundle_vouches_for_its_own_trust_domain_alone() -> None:
    context = x509_context(api.x509(GOOD, federated=[FEDERATED.bundle()]))
    assert len(context.bundle(LOCAL.trust_domain).x509_authorities) == 1
    with pytest.raises(VerificationError, match="not among the trusted domains"):
        context.bundle(TrustDomain("elsewhere.test"))


def test_certificate_revocation_lists_are_passed_over() -> None:
    response = api.x509(GOOD)
    response.crl.append(b"nothing that parses")
    assert x509_context(response).svid.id == WEB.id


def test_wa_16_a_jwt_bundle_holds_keys_for_jwt_svids_alone() -> None:
    for use, count in ((None, 1), ("jwt-svid", 1), ("x509-svid", 0), ("wit-svid", 0), ("sig", 0)):
        found = jwt_bundles(api.jwt_bundles({"cluster.local": ISSUER}, use=use))
        assert len(found.bundle(LOCAL.trust_domain).keys.keys) == count, use


def test_wa_19_jwt_keys_are_no_x509_authorities_and_the_other_way_round() -> None:
    keys, certificates = ISSUER.jwks().encode(), api.der(BUNDLE)
    with pytest.raises(InvalidResponse, match="expected a certificate in DER"):
        x509_bundles(messages.X509BundlesResponse(bundles={"spiffe://cluster.local": keys}))
    with pytest.raises(InvalidResponse, match="can not be read"):
        jwt_bundles(messages.JWTBundlesResponse(bundles={"spiffe://cluster.local": certificates}))


def test_jwt_bundles_are_kept_apart() -> None:
    found = jwt_bundles(api.jwt_bundles({"cluster.local": ISSUER, "partner.test": OTHER_ISSUER}))
    assert [key.key_id for key in found.bundle(LOCAL.trust_domain).keys.keys] == [ISSUER.key_id]
    assert [key.key_id for key in found.bundle(FEDERATED.trust_domain).keys.keys] == [OTHER_ISSUER.key_id]
    with pytest.raises(TokenRefused, match="not among the trusted domains"):
        found.bundle(TrustDomain("elsewhere.test"))


def test_wa_17_a_jwt_svid_for_each_identity_is_taken_when_none_was_named() -> None:
    other = jwt_entry(spiffe_id=str(DB.id), svid=token(sub=str(DB.id)))
    assert [svid.id for svid in jwt_svids(jwt_entry(), other)] == [WEB.id, DB.id]
    with pytest.raises(InvalidResponse, match=r"was asked for .*/web, and one came for .*/db"):
        jwt_svids(jwt_entry(), other, spiffe_id=WEB.id)
    assert jwt_svids(jwt_entry(), spiffe_id=WEB.id)


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        (jwt_entry(svid=token(sub=str(DB.id))), "is of .*/db, and was said to be of .*/web"),
        (jwt_entry(spiffe_id="spiffe://CLUSTER.local/ns/default/sa/web"), "was said to be of"),
        (jwt_entry(svid=token(aud=["somebody"])), f"is not for {AUDIENCE}"),
        (jwt_entry(svid=token(sub="web")), "is no SPIFFE ID"),
        (jwt_entry(svid=token(exp=None)), "does not say its exp"),
        (jwt_entry(svid="no token"), "malformed"),
    ],
)
def test_a_token_that_is_no_answer_to_what_was_asked_is_refused(entry: messages.JWTSVID, why: str) -> None:
    with pytest.raises(InvalidResponse, match=why):
        jwt_svids(jwt_entry(), entry)


def test_wa_18_claims_come_with_the_identity_that_they_speak_of() -> None:
    found = decode.validated(validated(groups=["a", "b"]))
    assert found.id == WEB.id
    assert found.claims["groups"] == ["a", "b"]
    for wrong in (validated(sub=str(DB.id)), validated(sub=None)):
        with pytest.raises(InvalidResponse, match="its claims speak of another"):
            decode.validated(wrong)


def test_no_refusal_shows_a_key_or_a_token() -> None:
    secret = GOOD.x509_svid_key
    for broken in (secret[:-1], secret + b"\0", b"0" + secret):
        with pytest.raises(InvalidResponse) as refused:
            x509_context(api.x509(api.entry(WEB, BUNDLE, x509_svid_key=broken)))
        causes = [refused.value, refused.value.__cause__, refused.value.__context__]
        assert not any(secret[40:60].hex() in repr(cause) or repr(secret[40:60]) in repr(cause) for cause in causes)
    text = token(sub=str(DB.id))
    with pytest.raises(InvalidResponse) as refused:
        jwt_svids(jwt_entry(svid=text))
    assert text not in str(refused.value)


def test_a_key_that_is_public_is_no_private_key() -> None:
    public = _ec(WEB.private_key).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    with pytest.raises(InvalidResponse, match="PKCS#8"):
        x509_context(api.x509(api.entry(WEB, BUNDLE, x509_svid_key=public)))


def test_svids_of_two_trust_domains_come_with_a_bundle_each(foreign_authority: FakeAuthority) -> None:
    theirs = foreign_authority.svid()
    context = x509_context(api.x509(GOOD, api.entry(theirs, foreign_authority.bundle())))
    assert context.bundle(theirs.id.trust_domain).x509_authorities == foreign_authority.bundle().x509_authorities
