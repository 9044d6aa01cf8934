"""SPIFFE-ID, requirement by requirement."""

from __future__ import annotations

import json
import string

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from istio_auth.authorize import is_id, member_of
from istio_auth.errors import Fault, InvalidSpiffeID, NotAuthorized, VerificationError
from istio_auth.spiffe_id import SpiffeID, TrustDomain
from istio_auth.tokens import TokenFault
from istio_auth.verify import verify_chain
from tests.fakes.der import with_bytes
from tests.fakes.token_issuer import base64url
from tests.unit.test_jwt_svid import fault as fault_of_token
from tests.unit.test_jwt_svid import payload, token
from tests.vectors.x509_svid import BUNDLES, LOCAL, NOW

UNCOMPRESSED = (Encoding.X962, PublicFormat.UncompressedPoint)
LONGEST = "spiffe://td/" + "a" * (2048 - len("spiffe://td/"))


def refused(*texts: str) -> None:
    for text in texts:
        with pytest.raises(InvalidSpiffeID):
            SpiffeID.parse(text)


def accepted(*texts: str) -> None:
    assert [str(SpiffeID.parse(text)) for text in texts] == list(texts)


def test_id_01_the_scheme_is_spiffe() -> None:
    refused("http://td/x", "https://td/x", "spiffes://td/x", "//td/x", "td/x", "spiffe:td/x", "spiffe:/td/x", "")
    accepted("spiffe://td/x")


def test_id_02_there_is_a_trust_domain() -> None:
    refused("spiffe://", "spiffe:///x")


def test_id_03_there_is_no_query_and_no_fragment() -> None:
    refused(
        "spiffe://td/x?q=1", "spiffe://td/x?", "spiffe://td?q", "spiffe://td/x#f", "spiffe://td/x#", "spiffe://td#f"
    )


def test_id_04_there_is_no_user_and_no_port_nor_a_sign_of_them() -> None:
    refused("spiffe://me@td/x", "spiffe://@td/x", "spiffe://me:pw@td/x", "spiffe://td:443/x", "spiffe://td:/x")


def test_id_05_a_trust_domain_is_in_lower_case() -> None:
    refused("spiffe://TD/x", "spiffe://Td/x")


def test_id_06_a_trust_domain_has_these_characters_and_no_others() -> None:
    legal = set(string.ascii_lowercase + string.digits + ".-_")
    for character in {*map(chr, range(0x250))} - {"/"}:
        (accepted if character in legal else refused)(f"spiffe://a{character}b")


def test_id_07_nothing_in_a_trust_domain_is_percent_encoded() -> None:
    refused("spiffe://t%64/x", "spiffe://%74d/x", "spiffe://td%2e/x")


def test_id_08_four_numbers_are_a_trust_domain_and_a_literal_of_ipv6_is_none() -> None:
    accepted("spiffe://10.0.0.1/x", "spiffe://999.999.999.999/x")
    refused("spiffe://[::1]/x", "spiffe://::1/x")


def test_id_09_a_trust_domain_is_an_opaque_name() -> None:
    accepted("spiffe://a..b/x", "spiffe://-/x", "spiffe://./x", "spiffe://_/x", "spiffe://a./x")
    # No suffix, no dot at the end and no leading zero makes two names one.
    names = ["example.org", "example.org.", "a.example.org", "10.0.0.1", "10.0.0.01"]
    for name in names:
        welcome = member_of(TrustDomain(name))
        for other in names:
            peer = SpiffeID.parse(f"spiffe://{other}/x")
            if other == name:
                welcome(peer)
            else:
                with pytest.raises(NotAuthorized):
                    welcome(peer)


def test_id_10_nothing_in_a_path_is_percent_encoded() -> None:
    refused("spiffe://td/%41", "spiffe://td/a%2Fb", "spiffe://td/%", "spiffe://td/%2e%2e")


def test_id_11_no_segment_is_empty_or_made_of_one_or_two_dots() -> None:
    refused(
        "spiffe://td//x", "spiffe://td/x//y", "spiffe://td/./x", "spiffe://td/../x", "spiffe://td/x/.", "spiffe://td/.."
    )
    accepted("spiffe://td/...", "spiffe://td/..x", "spiffe://td/x..", "spiffe://td/.x/y")


def test_id_12_there_is_no_slash_at_the_end() -> None:
    refused("spiffe://td/", "spiffe://td/x/")


def test_id_13_a_segment_has_these_characters_and_no_others() -> None:
    legal = set(string.ascii_letters + string.digits + ".-_/")
    for character in map(chr, range(0x250)):
        (accepted if character in legal else refused)(f"spiffe://td/a{character}b")


def test_id_14_2048_bytes_are_read() -> None:
    accepted(LONGEST)


def test_id_15_more_than_2048_bytes_are_never_written() -> None:
    refused(f"{LONGEST}a")
    with pytest.raises(InvalidSpiffeID):
        SpiffeID(TrustDomain("td"), "/" + "a" * 2040)


def test_id_16_a_trust_domain_has_at_most_255_bytes() -> None:
    accepted("spiffe://" + "a" * 255)
    refused("spiffe://" + "a" * 256)


def test_id_17_case_counts_in_a_path_and_not_in_what_a_person_types_before_it() -> None:
    assert SpiffeID.normalized("SPIFFE://Td/Web") == SpiffeID.parse("spiffe://td/Web")
    assert SpiffeID.parse("spiffe://td/Web") != SpiffeID.parse("spiffe://td/web")
    with pytest.raises(NotAuthorized):
        is_id(SpiffeID.parse("spiffe://td/web"))(SpiffeID.parse("spiffe://td/Web"))


def test_id_18_an_empty_path_names_the_trust_domain_itself() -> None:
    accepted("spiffe://td")
    assert SpiffeID.parse("spiffe://td") == TrustDomain("td").id


def test_id_21_what_is_no_defined_kind_of_svid_proves_nothing() -> None:
    for kind in ("wit+jwt", "at+jwt", "JWS", "spiffe"):
        assert fault_of_token(token(header={"typ": kind})) is TokenFault.HEADER
    with pytest.raises(VerificationError) as caught:  # a CA certificate is none for authentication
        verify_chain([LOCAL.certificate], BUNDLES, NOW)
    assert caught.value.fault is Fault.NO_PATH


def test_id_22_the_id_and_the_key_are_in_what_is_signed() -> None:
    leaf = LOCAL.chain()[0]
    renamed = with_bytes(leaf, b"/sa/web".hex(), b"/sa/bew".hex())
    point = leaf.public_key().public_bytes(*UNCOMPRESSED)
    other = LOCAL.chain()[0].public_key().public_bytes(*UNCOMPRESSED)
    for changed in (renamed, with_bytes(leaf, point.hex(), other.hex())):
        with pytest.raises(VerificationError) as caught:
            verify_chain([changed], BUNDLES, NOW)
        assert caught.value.fault is Fault.UNTRUSTED
    verify_chain([leaf], BUNDLES, NOW)
    head, _, signature = token().split(".")
    other_subject = base64url(json.dumps(payload(sub="spiffe://cluster.local/admin")).encode())
    assert fault_of_token(f"{head}.{other_subject}.{signature}") is TokenFault.SIGNATURE
