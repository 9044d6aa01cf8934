"""Trust Domain and Bundle, and the entries that X509-SVID and JWT-SVID put there, requirement by requirement."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest

from istio_auth.bundle import DEFAULT_REFRESH_HINT, BundleSet, TrustBundle
from istio_auth.errors import Fault, InvalidBundle, InvalidSpiffeID, VerificationError
from istio_auth.jwt_bundle import JWTBundle, JWTBundleSet
from istio_auth.spiffe_id import TrustDomain
from istio_auth.strict_json import JSON
from istio_auth.tokens import TokenFault
from istio_auth.verify import verify_chain
from tests.fakes.authority import FakeAuthority
from tests.fakes.token_issuer import TokenIssuer
from tests.unit.test_bundle import document, entry, read, x5c
from tests.unit.test_jwt_bundle import entry as jwt_entry
from tests.unit.test_jwt_svid import LOCAL as JWT_ISSUER
from tests.unit.test_jwt_svid import fault as fault_of_token
from tests.unit.test_jwt_svid import token, validate
from tests.vectors.x509_svid import LOCAL, NOW

TD = TrustDomain("cluster.local")
OTHER = TrustDomain("partner.test")


def read_jwt(*entries: JSON) -> JWTBundle:
    return JWTBundle.from_json(TD, json.dumps({"keys": list(entries)}))


def bundle_map(members: object) -> str:
    return json.dumps({"trust_domains": members})


class TestX509Entries:
    def test_xb_01_each_ca_certificate_has_an_entry_for_x509_svids(self, authority: FakeAuthority) -> None:
        both = TrustBundle(TD, (authority.certificate, LOCAL.certificate))
        assert [key["use"] for key in document(both)["keys"]] == ["x509-svid"] * 2
        assert TrustBundle.from_json(TD, both.to_json()) == both

    def test_xb_02_it_is_written_without_a_kid_and_read_with_any(self, authority: FakeAuthority) -> None:
        assert "kid" not in document(authority.bundle())["keys"][0]
        assert read(entry(authority, kid="x")).x509_authorities == (authority.certificate,)

    def test_xb_03_it_holds_one_der_certificate_in_the_standard_alphabet(self, authority: FakeAuthority) -> None:
        assert document(authority.bundle())["keys"][0]["x5c"] == x5c(authority)

    def test_xb_04_the_certificate_need_not_be_self_signed(self, authority: FakeAuthority) -> None:
        between = FakeAuthority(parent=authority)
        bundle = TrustBundle.from_json(TD, json.dumps({"keys": [entry(between)]}))
        assert bundle.x509_authorities == (between.certificate,)
        verify_chain(between.chain()[:1], bundle, authority.now)

    @pytest.mark.parametrize("value", [None, [], {}, "", "MIIB"], ids=str)
    def test_xb_05_without_x5c_it_is_ignored(self, authority: FakeAuthority, value: object) -> None:
        assert read(entry(LOCAL, x5c=value), entry(authority)).x509_authorities == (authority.certificate,)

    def test_xb_06_of_several_x5c_values_the_first_counts(self, authority: FakeAuthority) -> None:
        for more in (x5c(LOCAL), ["junk"], [""], [7], [None]):
            assert read(entry(authority, x5c=[*x5c(authority), *more])).x509_authorities == (authority.certificate,)

    def test_xb_07_without_any_there_are_no_x509_svids(self) -> None:
        bundle = TrustBundle.from_json(TD, json.dumps({"keys": [jwt_entry()]}))
        with pytest.raises(VerificationError) as caught:
            verify_chain(LOCAL.chain(), bundle, NOW)
        assert caught.value.fault is Fault.UNTRUSTED


class TestJWTEntries:
    def test_jw_14_an_entry_has_a_use_and_a_name(self) -> None:
        assert len(read_jwt(jwt_entry(JWT_ISSUER)).keys.keys) == 1
        for changes in ({"use": None}, {"kid": None}):
            bundle = read_jwt(jwt_entry(JWT_ISSUER, **changes), jwt_entry(TokenIssuer("RS256")))
            assert len(bundle.keys.keys) == 1
            assert fault_of_token(token(header={"kid": None}), bundle) is TokenFault.UNKNOWN_KEY

    @pytest.mark.parametrize("use", ["sig", "x509-svid", "wit-svid", "JWT-SVID"])
    def test_jw_15_keys_of_another_use_validate_no_token(self, use: str) -> None:
        assert fault_of_token(token(), read_jwt(jwt_entry(JWT_ISSUER, use=use))) is TokenFault.UNKNOWN_KEY
        validate(token(), read_jwt(jwt_entry(JWT_ISSUER)))

    @pytest.mark.parametrize("kid", [{}, {"kid": None}], ids=["named", "unnamed"])
    def test_wa_19_a_key_for_x509_svids_validates_no_token_though_it_signed_it(self, kid: dict[str, JSON]) -> None:
        authority = FakeAuthority(key=JWT_ISSUER.key)  # type: ignore[arg-type]  # ECDSA, as its algorithm says
        keys = json.loads(authority.bundle().to_json())["keys"]
        keys[0]["kid"] = JWT_ISSUER.key_id
        assert len(TrustBundle.from_json(TD, json.dumps({"keys": keys})).x509_authorities) == 1
        assert fault_of_token(token(header=kid), read_jwt(*keys)) is TokenFault.UNKNOWN_KEY

    def test_wa_19_a_key_for_jwt_svids_is_no_ca_though_a_certificate_is_with_it(self, authority: FakeAuthority) -> None:
        assert read(jwt_entry(x5c=list(x5c(authority)))).x509_authorities == ()


class TestBundle:
    def test_bd_01_it_is_a_json_object(self) -> None:
        for text in ("[]", "1", '"x"', "null", "", "junk", "<html></html>"):
            for read_as in (TrustBundle.from_json, JWTBundle.from_json):
                with pytest.raises(InvalidBundle):
                    read_as(TD, text)

    def test_bd_02_its_sequence_is_an_integer_of_64_bits_and_more(self) -> None:
        assert read(spiffe_sequence=2**63 + 1).sequence == 2**63 + 1
        assert read().sequence is None
        for value in ("1", 1.5, True, [1]):
            with pytest.raises(InvalidBundle):
                read(spiffe_sequence=value)

    def test_bd_03_its_refresh_hint_is_an_integer_of_seconds(self) -> None:
        assert read(spiffe_refresh_hint=90).refresh_hint == timedelta(seconds=90)
        for value in ("90", 1.5, True, [1]):
            with pytest.raises(InvalidBundle):
                read(spiffe_refresh_hint=value)

    def test_bd_04_it_has_an_array_of_keys(self) -> None:
        for text in ("{}", '{"keys": {}}', '{"keys": null}', '{"keys": "x"}'):
            for read_as in (TrustBundle.from_json, JWTBundle.from_json):
                with pytest.raises(InvalidBundle):
                    read_as(TD, text)

    def test_bd_05_without_a_usable_key_every_svid_is_invalid(self) -> None:
        for entries in ([], [{"kty": "OKP", "use": "x509-svid"}], [{"kty": "EC", "use": "other"}]):
            bundle = TrustBundle.from_json(TD, json.dumps({"keys": entries}))
            with pytest.raises(VerificationError) as caught:
                verify_chain(LOCAL.chain(), bundle, NOW)
            assert caught.value.fault is Fault.UNTRUSTED
            assert fault_of_token(token(), read_jwt(*entries)) is TokenFault.UNKNOWN_KEY  # type: ignore[arg-type]  # JSON

    @pytest.mark.parametrize("kty", [None, "OKP", "oct", "AKP", "ec", 1], ids=str)
    def test_bd_06_an_entry_of_unknown_type_is_ignored_alone(self, authority: FakeAuthority, kty: JSON) -> None:
        assert read(entry(LOCAL, kty=kty), entry(authority)).x509_authorities == (authority.certificate,)
        validate(token(), read_jwt(jwt_entry(TokenIssuer("RS256"), kty=kty), jwt_entry(JWT_ISSUER)))

    @pytest.mark.parametrize("use", [None, "X509-SVID", "sig", "wit-svid", "future-svid", 1], ids=str)
    def test_bd_07_an_entry_of_missing_or_unknown_use_is_ignored_alone(
        self, authority: FakeAuthority, use: JSON
    ) -> None:
        assert read(entry(LOCAL, use=use), entry(authority)).x509_authorities == (authority.certificate,)
        validate(token(), read_jwt(jwt_entry(TokenIssuer("RS256"), use=use), jwt_entry(JWT_ISSUER)))

    def test_bd_08_other_members_are_allowed_and_never_needed(self, authority: FakeAuthority) -> None:
        assert read(entry(authority), other={"a": [1]}) == read(entry(authority))

    def test_bd_09_other_members_of_an_entry_are_neither_written_nor_minded(self, authority: FakeAuthority) -> None:
        assert set(document(authority.bundle())["keys"][0]) == {"kty", "use", "crv", "x", "y", "x5c"}
        assert read(entry(authority, other=1, alg="ES256", key_ops=["verify"])) == read(entry(authority))
        validate(token(), read_jwt(jwt_entry(JWT_ISSUER, other=[1])))

    def test_bd_10_without_a_hint_five_minutes_are_usual(self) -> None:
        assert read().refresh_hint is None
        assert timedelta(minutes=5) == DEFAULT_REFRESH_HINT

    def test_bd_11_its_trust_domain_is_told_beside_it_and_by_nothing_in_it(self, authority: FakeAuthority) -> None:
        text = json.dumps({"keys": [entry(authority)], "trust_domain": "elsewhere.test"})
        assert TrustBundle.from_json(OTHER, text).trust_domain == OTHER
        assert JWTBundle.from_json(OTHER, text).trust_domain == OTHER


class TestMap:
    def test_bm_01_it_has_an_object_of_trust_domains_which_may_be_empty(self) -> None:
        for read_as in (BundleSet.from_json, JWTBundleSet.from_json):
            assert list(read_as('{"trust_domains": {}}')) == []
            for text in ("{}", '{"trust_domains": []}', '{"trust_domains": null}', "[]"):
                with pytest.raises(InvalidBundle):
                    read_as(text)

    @pytest.mark.parametrize("name", ["spiffe://cluster.local", "Cluster.local", "a/b", "", "a:1"])
    def test_bm_02_its_members_are_named_by_trust_domain(self, name: str) -> None:
        for read_as in (BundleSet.from_json, JWTBundleSet.from_json):
            with pytest.raises(InvalidSpiffeID):
                read_as(bundle_map({name: {"keys": []}}))

    def test_bm_03_a_name_that_is_there_twice_makes_it_none(self) -> None:
        for read_as in (BundleSet.from_json, JWTBundleSet.from_json):
            with pytest.raises(InvalidBundle):
                read_as('{"trust_domains": {"a": {"keys": []}, "a": {"keys": []}}}')

    def test_bm_04_its_members_are_written_without_refresh_hints(self) -> None:
        written = BundleSet((TrustBundle(TD, refresh_hint=timedelta(minutes=1)),)).to_json()
        assert json.loads(written) == {"trust_domains": {"cluster.local": {"keys": []}}}

    def test_bm_05_the_hint_of_a_member_is_its_own(self) -> None:
        one, other = BundleSet.from_json(bundle_map({"a": {"keys": [], "spiffe_refresh_hint": 1}, "b": {"keys": []}}))
        assert (one.refresh_hint, other.refresh_hint) == (timedelta(seconds=1), None)

    def test_bm_06_it_is_taken_whole_or_not_at_all(self, authority: FakeAuthority) -> None:
        good = {"keys": [entry(authority)]}
        for read_as in (BundleSet.from_json, JWTBundleSet.from_json):
            with pytest.raises(InvalidBundle):
                read_as(bundle_map({"a": good, "b": {"keys": "damaged"}}))
            assert len(list(read_as(bundle_map({"a": good, "b": {"keys": []}})))) == 2
