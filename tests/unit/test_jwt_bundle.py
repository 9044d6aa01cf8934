"""JWTBundle: which keys may sign the JWT-SVIDs of a trust domain (JWT-SVID 6, Trust Domain and Bundle 4)."""

from __future__ import annotations

import base64
import json

import pytest

from istio_auth.bundle import TrustBundle
from istio_auth.errors import InvalidBundle, InvalidSpiffeID
from istio_auth.jwks import KeySet
from istio_auth.jwt_bundle import JWTBundle, JWTBundleSet
from istio_auth.pem import write_der
from istio_auth.spiffe_id import TrustDomain
from istio_auth.strict_json import JSON
from istio_auth.tokens import TokenFault, TokenRefused
from tests.fakes.authority import FakeAuthority
from tests.fakes.token_issuer import TokenIssuer

TD = TrustDomain("cluster.local")
ISSUER = TokenIssuer()
OTHER = TokenIssuer("RS256")


def entry(issuer: TokenIssuer = ISSUER, **changes: JSON) -> dict[str, JSON]:
    return issuer.jwk(**{"use": "jwt-svid", "alg": None, **changes})


def document(*entries: JSON, **others: JSON) -> str:
    return json.dumps({"keys": list(entries), **others})


def key_ids(bundle: JWTBundle) -> list[str]:
    return [key.key_id for key in bundle.keys.keys]


def x509_entry(authority: FakeAuthority) -> dict[str, JSON]:
    return TrustBundle(TD, (authority.certificate,)).to_document()["keys"][0]  # type: ignore[index,return-value]  # JSON


class TestASpiffeBundle:
    def test_gives_the_keys_for_jwt_svids(self) -> None:
        bundle = JWTBundle.from_json(TD, document(entry(), entry(OTHER), spiffe_sequence=3))
        assert (bundle.trust_domain, key_ids(bundle)) == (TD, [ISSUER.key_id, OTHER.key_id])

    @pytest.mark.parametrize("use", [None, "sig", "x509-svid", "wit-svid", "JWT-SVID", "enc", 1, ["jwt-svid"]], ids=str)
    def test_gives_no_key_of_another_use_and_the_others_all_the_same(self, use: JSON) -> None:
        bundle = JWTBundle.from_json(TD, document(entry(kid="a", use=use), entry(OTHER)))
        assert key_ids(bundle) == [OTHER.key_id]
        assert len(bundle.keys.left_out) == 1

    def test_gives_no_key_without_a_name_and_the_others_all_the_same(self) -> None:
        for kid in (None, ""):
            bundle = JWTBundle.from_json(TD, document(entry(kid=kid), entry(OTHER)))
            assert key_ids(bundle) == [OTHER.key_id]
            assert any("JW-14" in reason for reason in bundle.keys.left_out)

    @pytest.mark.parametrize("kty", [None, "OKP", "oct", "ec", 1], ids=str)
    def test_gives_no_key_of_an_unknown_kind_and_the_others_all_the_same(self, kty: JSON) -> None:
        assert key_ids(JWTBundle.from_json(TD, document(entry(kty=kty), entry(OTHER)))) == [OTHER.key_id]

    def test_may_have_no_key_at_all(self, authority: FakeAuthority) -> None:
        for text in (document(), document(x509_entry(authority))):
            assert JWTBundle.from_json(TD, text).keys.keys == ()

    @pytest.mark.parametrize(
        "text",
        ["", "junk", "[]", "{}", '{"keys": {}}', '{"keys": [], "keys": []}', "[" * 100_000, "<html>", b"\xff\xfe\xff"],
        ids=lambda text: repr(text[:20]),
    )
    def test_is_a_document_of_that_form(self, text: str | bytes) -> None:
        for read in (JWTBundle.from_json, JWTBundle.from_workload_api):
            with pytest.raises(InvalidBundle):
                read(TD, text)

    def test_that_shows_a_private_key_is_refused_whole(self) -> None:
        with pytest.raises(InvalidBundle):
            JWTBundle.from_json(TD, document(entry(), entry(OTHER, d="AQAB")))

    def test_that_is_enormous_is_not_read(self) -> None:
        with pytest.raises(InvalidBundle):
            JWTBundle.from_json(TD, document() + " " * (4 << 20))


class TestAKeySetOfAWorkloadAPI:
    def test_need_not_say_what_its_keys_are_for(self) -> None:
        bundle = JWTBundle.from_workload_api(TD, document(entry(use=None), entry(OTHER)))
        assert key_ids(bundle) == [ISSUER.key_id, OTHER.key_id]

    @pytest.mark.parametrize("use", ["sig", "x509-svid", "wit-svid", "JWT-SVID", "", 1], ids=str)
    def test_gives_no_key_of_another_use(self, use: JSON) -> None:
        assert JWTBundle.from_workload_api(TD, document(entry(use=use))).keys.keys == ()
        assert JWTBundle.from_workload_api(TD, document(entry())).keys.keys

    def test_gives_no_null_for_a_use(self) -> None:
        assert JWTBundle.from_workload_api(TD, document(entry() | {"use": None})).keys.keys == ()


def test_keys_for_one_kind_of_svid_are_none_for_another(authority: FakeAuthority) -> None:
    text = document(x509_entry(authority), entry(), entry(OTHER, use="wit-svid", kid="w"))
    assert TrustBundle.from_json(TD, text).x509_authorities == (authority.certificate,)
    assert key_ids(JWTBundle.from_json(TD, text)) == [ISSUER.key_id]
    # Not even where the entry of the other kind has all that this kind needs.
    x5c: list[JSON] = [base64.b64encode(write_der(authority.certificate)).decode()]
    both = document(entry(use="x509-svid", x5c=x5c), entry(OTHER, x5c=x5c))
    assert len(TrustBundle.from_json(TD, both).x509_authorities) == 1
    assert key_ids(JWTBundle.from_json(TD, both)) == [OTHER.key_id]


class TestLookingUp:
    OURS = JWTBundle(TD, ISSUER.keys())
    THEIRS = JWTBundle(TrustDomain("partner.test"), OTHER.keys())

    def test_gives_each_trust_domain_its_own_keys(self) -> None:
        bundles = JWTBundleSet((self.OURS, self.THEIRS))
        assert bundles.bundle(TD) is self.OURS
        assert bundles.bundle(TrustDomain("partner.test")) is self.THEIRS
        assert self.OURS.bundle(TD) is self.OURS
        assert list(bundles) == [self.OURS, self.THEIRS]

    def test_gives_a_domain_without_bundle_none(self) -> None:
        for source in (JWTBundleSet(), JWTBundleSet((self.OURS,)), self.OURS):
            with pytest.raises(TokenRefused) as caught:
                source.bundle(TrustDomain("elsewhere.test"))
            assert caught.value.fault is TokenFault.FOREIGN_TRUST_DOMAIN

    def test_has_each_domain_once(self) -> None:
        with pytest.raises(InvalidBundle):
            JWTBundleSet((self.OURS, JWTBundle(TD)))


class TestABundleMap:
    def test_gives_the_keys_of_each_trust_domain(self) -> None:
        members = {"cluster.local": json.loads(document(entry())), "partner.test": json.loads(document(entry(OTHER)))}
        bundles = JWTBundleSet.from_json(json.dumps({"trust_domains": members}))
        assert [(bundle.trust_domain.name, key_ids(bundle)) for bundle in bundles] == [
            ("cluster.local", [ISSUER.key_id]),
            ("partner.test", [OTHER.key_id]),
        ]
        assert JWTBundleSet.from_json('{"trust_domains": {}}') == JWTBundleSet()

    @pytest.mark.parametrize(
        "text",
        [
            "[]",
            "{}",
            '{"trust_domains": []}',
            '{"trust_domains": {"a": {"keys": []}, "a": {"keys": []}}}',
            '{"trust_domains": {"a": {"keys": []}, "b": {}}}',
        ],
    )
    def test_is_taken_whole_or_not_at_all(self, text: str) -> None:
        with pytest.raises(InvalidBundle):
            JWTBundleSet.from_json(text)

    def test_names_its_members_by_trust_domain(self) -> None:
        with pytest.raises(InvalidSpiffeID):
            JWTBundleSet.from_json('{"trust_domains": {"spiffe://a": {"keys": []}}}')


def test_a_bundle_without_keys_is_equal_to_an_empty_one() -> None:
    assert JWTBundle(TD) == JWTBundle(TD, KeySet())
