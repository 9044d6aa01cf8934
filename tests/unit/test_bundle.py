"""TrustBundle and BundleSet: the SPIFFE bundle format both ways (Trust Domain and Bundle 4, X509-SVID 6)."""

from __future__ import annotations

import base64
import json
from datetime import timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from istio_auth.bundle import BundleSet, TrustBundle
from istio_auth.errors import Fault, InvalidBundle, InvalidPEM, InvalidSpiffeID, VerificationError
from istio_auth.pem import write_der
from istio_auth.spiffe_id import TrustDomain
from tests.fakes.authority import FakeAuthority
from tests.fakes.der import of_version_4

TD = TrustDomain("cluster.local")


def x5c(*authorities: FakeAuthority) -> list[str]:
    return [base64.b64encode(write_der(authority.certificate)).decode() for authority in authorities]


def entry(authority: FakeAuthority, **changes: object) -> dict[str, object]:
    made = {"kty": "EC", "use": "x509-svid", "crv": "P-256", "x": "AA", "y": "AA", "x5c": x5c(authority)} | changes
    return {name: value for name, value in made.items() if value is not None}


def read(*entries: object, **others: object) -> TrustBundle:
    return TrustBundle.from_json(TD, json.dumps({"keys": entries, **others}))


def document(bundle: TrustBundle) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(bundle.to_json())
    return made


class TestReading:
    def test_an_authority_counts(self, authority: FakeAuthority) -> None:
        bundle = read(entry(authority), spiffe_sequence=7, spiffe_refresh_hint=60)
        assert bundle == TrustBundle(TD, (authority.certificate,), 7, timedelta(minutes=1))

    @pytest.mark.parametrize(
        "changes",
        [
            {"kty": None},
            {"kty": "OKP"},
            {"kty": "ec"},
            {"kty": 1},
            {"kty": ["EC"]},
            {"use": None},
            {"use": "jwt-svid"},
            {"use": "wit-svid"},
            {"use": "X509-SVID"},
            {"use": "sig"},
            {"use": 1},
            {"x5c": None},
            {"x5c": []},
            {"x5c": "MIIB"},
            {"x5c": {}},
        ],
        ids=str,
    )
    def test_an_entry_of_unknown_kind_is_ignored_and_its_neighbour_counts(
        self, authority: FakeAuthority, foreign_authority: FakeAuthority, changes: dict[str, object]
    ) -> None:
        bundle = read(entry(foreign_authority, **changes), entry(authority))
        assert bundle.x509_authorities == (authority.certificate,)

    @pytest.mark.parametrize("wrong", [1, "x", None, True, [], ["EC"]])
    def test_an_entry_that_is_no_object_is_ignored(self, authority: FakeAuthority, wrong: object) -> None:
        assert read(wrong, entry(authority)).x509_authorities == (authority.certificate,)

    def test_of_several_x5c_values_the_first_counts(
        self, authority: FakeAuthority, foreign_authority: FakeAuthority
    ) -> None:
        bundle = read(entry(authority, x5c=x5c(authority, foreign_authority)))
        assert bundle.x509_authorities == (authority.certificate,)
        assert read(entry(authority, x5c=[*x5c(authority), "junk"])) == bundle

    @pytest.mark.parametrize(
        "value",
        ["", "junk", "a\u00e9", "AAAA", 5, None, {"a": 1}, "-----BEGIN CERTIFICATE-----"],
        ids=ascii,
    )
    def test_a_damaged_authority_damages_the_bundle(self, authority: FakeAuthority, value: object) -> None:
        with pytest.raises(InvalidBundle):
            read(entry(authority), entry(authority, x5c=[value]))

    def test_an_authority_in_another_alphabet_or_form_damages_the_bundle(self, authority: FakeAuthority) -> None:
        der = write_der(authority.certificate)
        for text in (
            base64.urlsafe_b64encode(b"\xff\xff" + der).decode(),
            base64.encodebytes(der).decode(),
            base64.b64encode(der + b"\0").decode(),
            base64.b64encode(of_version_4(authority.certificate)).decode(),
        ):
            with pytest.raises(InvalidBundle):
                read(entry(authority, x5c=[text]))

    def test_the_same_authority_counts_once(self, authority: FakeAuthority) -> None:
        assert len(read(entry(authority), entry(authority)).x509_authorities) == 1
        pem = authority.bundle().to_pem()
        assert len(TrustBundle.from_pem(TD, pem + pem).x509_authorities) == 1

    def test_no_keys_is_a_bundle_that_trusts_nobody(self) -> None:
        assert read() == TrustBundle(TD)

    def test_unknown_members_are_allowed(self, authority: FakeAuthority) -> None:
        bundle = read(entry(authority, kid="x", alg="ES256", extra=[1]), spiffe_other={"a": 1})
        assert bundle.x509_authorities == (authority.certificate,)

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "junk",
            "[]",
            "1",
            "null",
            "{}",
            '{"keys": {}}',
            '{"keys": null}',
            '{"keys": [}',
            b"\xff\xfe\xff",
            '{"keys": [], "keys": []}',
            '{"keys": [{"kty": "EC", "kty": "RSA"}]}',
            "[" * 100_000,
            '{"keys": [], "spiffe_sequence": ' + "9" * 5000 + "}",
        ],
        ids=lambda text: repr(text[:40]),
    )
    def test_what_is_no_bundle_document_is_refused(self, text: bytes | str) -> None:
        with pytest.raises(InvalidBundle):
            TrustBundle.from_json(TD, text)

    @pytest.mark.parametrize("member", ["spiffe_sequence", "spiffe_refresh_hint"])
    @pytest.mark.parametrize("value", ["1", 1.5, 1.0, True, -1, [], {}])
    def test_sequence_and_hint_are_whole_numbers(self, member: str, value: object) -> None:
        with pytest.raises(InvalidBundle):
            read(**{member: value})

    def test_a_sequence_has_64_bits_and_more(self) -> None:
        assert read(spiffe_sequence=2**64).sequence == 2**64
        assert read(spiffe_sequence=0).sequence == 0
        assert read(spiffe_sequence=None).sequence is None

    def test_a_hint_of_a_thousand_years_is_cut_and_no_crash(self) -> None:
        assert read(spiffe_refresh_hint=10**30).refresh_hint == timedelta(days=366)

    def test_size_is_bounded(self) -> None:
        with pytest.raises(InvalidBundle):
            TrustBundle.from_json(TD, '{"keys": []}' + " " * (4 << 20))

    def test_pem_holds_certificates_alone(self, authority: FakeAuthority) -> None:
        with pytest.raises(InvalidPEM):
            TrustBundle.from_pem(TD, b"")
        assert TrustBundle.from_pem(TD, authority.bundle().to_pem()) == TrustBundle(TD, (authority.certificate,))


class TestWriting:
    def test_a_consumer_finds_what_the_standard_demands(self, authority: FakeAuthority) -> None:
        [key] = document(authority.bundle(sequence=3))["keys"]
        point = authority.certificate.public_key()
        assert isinstance(point, ec.EllipticCurvePublicKey)
        assert (key["use"], key["kty"], key["crv"]) == ("x509-svid", "EC", "P-256")
        assert key["x5c"] == x5c(authority)
        assert "kid" not in key  # XB-02
        assert int.from_bytes(base64.urlsafe_b64decode(key["x"] + "=="), "big") == point.public_numbers().x
        assert int.from_bytes(base64.urlsafe_b64decode(key["y"] + "=="), "big") == point.public_numbers().y
        assert document(authority.bundle(sequence=3))["spiffe_sequence"] == 3

    def test_an_rsa_authority_is_written_with_its_key(self) -> None:
        private = rsa.generate_private_key(65537, 2048)
        [key] = document(FakeAuthority(key=private).bundle())["keys"]
        assert key["kty"] == "RSA"
        assert key["e"] == "AQAB"
        modulus = base64.urlsafe_b64decode(key["n"] + "==")
        assert int.from_bytes(modulus, "big") == private.public_key().public_numbers().n
        assert modulus[0] != 0  # RFC 7518 6.3.1.1: no leading zero

    def test_coordinates_keep_their_leading_zeros(self) -> None:
        short = next(
            key
            for key in iter(lambda: ec.generate_private_key(ec.SECP256R1()), None)
            if key.public_key().public_numbers().x < 1 << 248
        )
        [key] = document(FakeAuthority(key=short).bundle())["keys"]
        assert len(base64.urlsafe_b64decode(key["x"] + "==")) == 32  # RFC 7518 6.2.1.2

    def test_curves_of_authorities_that_others_use_are_written_too(self) -> None:
        for curve, name in ((ec.SECP384R1(), "P-384"), (ec.SECP521R1(), "P-521")):
            bundle = FakeAuthority(key=ec.generate_private_key(curve)).bundle()
            assert document(bundle)["keys"][0]["crv"] == name
            assert TrustBundle.from_json(TD, bundle.to_json()) == bundle
        with pytest.raises(InvalidBundle):
            FakeAuthority(key=ec.generate_private_key(ec.SECP256K1())).bundle().to_json()

    def test_absent_members_are_absent(self) -> None:
        assert document(TrustBundle(TD)) == {"keys": []}
        assert document(TrustBundle(TD, refresh_hint=timedelta(minutes=5))) == {"keys": [], "spiffe_refresh_hint": 300}

    def test_the_same_bundle_is_the_same_bytes(self, authority: FakeAuthority) -> None:
        assert authority.bundle().to_json() == authority.bundle().to_json()
        assert authority.bundle().to_pem() == authority.bundle().to_pem()


class TestLookingUp:
    def test_each_trust_domain_has_its_own_bundle(
        self, authority: FakeAuthority, foreign_authority: FakeAuthority
    ) -> None:
        bundles = BundleSet((authority.bundle(), foreign_authority.bundle()))
        assert bundles.bundle(TD) == authority.bundle()
        assert bundles.bundle(TrustDomain("foreign.test")) == foreign_authority.bundle()

    def test_a_domain_without_bundle_is_not_trusted(self, authority: FakeAuthority) -> None:
        for source in (authority.bundle(), BundleSet((authority.bundle(),)), BundleSet()):
            with pytest.raises(VerificationError) as caught:
                source.bundle(TrustDomain("elsewhere"))
            assert caught.value.fault is Fault.FOREIGN_TRUST_DOMAIN

    def test_a_set_holds_each_domain_once(self, authority: FakeAuthority) -> None:
        with pytest.raises(InvalidBundle):
            BundleSet((authority.bundle(), authority.bundle(sequence=2)))

    def test_a_new_bundle_takes_the_place_of_the_old_one(
        self, authority: FakeAuthority, foreign_authority: FakeAuthority
    ) -> None:
        bundles = BundleSet((authority.bundle(), foreign_authority.bundle()))
        newer = bundles.having(authority.bundle(sequence=2))
        assert newer.bundle(TD).sequence == 2
        assert len(list(newer)) == 2
        assert bundles.bundle(TD).sequence == 1


class TestMap:
    def test_a_map_goes_through_json(self, authority: FakeAuthority, foreign_authority: FakeAuthority) -> None:
        bundles = BundleSet((authority.bundle(), foreign_authority.bundle(sequence=9)))
        assert BundleSet.from_json(bundles.to_json()) == bundles
        assert BundleSet.from_json(BundleSet().to_json()) == BundleSet()

    def test_members_carry_no_hint_of_their_own(self) -> None:
        bundles = BundleSet((TrustBundle(TD, sequence=1, refresh_hint=timedelta(minutes=1)),))
        assert json.loads(bundles.to_json()) == {"trust_domains": {"cluster.local": {"keys": [], "spiffe_sequence": 1}}}

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "[]",
            "{}",
            '{"trust_domains": []}',
            '{"trust_domains": {"a": 1}}',
            '{"trust_domains": {"a": {"keys": []}, "a": {"keys": []}}}',
            '{"trust_domains": {"a": {"keys": []}, "b": {}}}',
        ],
    )
    def test_what_is_no_map_is_refused_whole(self, text: str) -> None:
        with pytest.raises(InvalidBundle):
            BundleSet.from_json(text)

    @pytest.mark.parametrize("name", ["spiffe://a", "A", "", "a/b", "a\n"])
    def test_members_are_named_by_trust_domain(self, name: str) -> None:
        with pytest.raises(InvalidSpiffeID):
            BundleSet.from_json(json.dumps({"trust_domains": {name: {"keys": []}}}))
