"""Whatever strangers send as tokens, requests and key sets: it is judged or refused, and nothing else happens."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from istio_auth.errors import MalformedError
from istio_auth.jwks import EVERY_ALGORITHM, InvalidKeySet, KeySet, base64url_octets
from istio_auth.strict_json import JSON
from istio_auth.tokens import Claims, FrozenJSON, TokenRefused, claimed_end, unproven, verify_token
from istio_auth.tokens.addresses import why_not_dialled
from istio_auth.tokens.locations import DEFAULT_LOCATIONS, InCookie, InHeader, find_token
from tests.fakes.token_issuer import AUDIENCE, TokenIssuer, base64url

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)
ISSUER = TokenIssuer(place=60)
KEYS = KeySet((*ISSUER.keys().keys, *TokenIssuer("EdDSA").keys().keys, *TokenIssuer("RS256").keys(alg=None).keys))
TOKEN = ISSUER.token(NOW)
PLACES = (*DEFAULT_LOCATIONS, InHeader("x-token"), InCookie("session"))

SCALAR = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
ANY_JSON = st.recursive(
    SCALAR, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4)
)
CLAIM_NAMES = st.sampled_from(["iss", "sub", "aud", "exp", "nbf", "iat", "jti", "a"])
HEADER_NAMES = st.sampled_from(["alg", "kid", "typ", "crit", "b64", "jwk", "jku", "x5c", "zip", "a"])
KEY_NAMES = st.sampled_from(["kty", "crv", "x", "y", "n", "e", "use", "alg", "kid", "key_ops", "d"])


def judged(token: str) -> Claims | None:
    try:
        return verify_token(
            token,
            KEYS,
            issuer=ISSUER.issuer,
            audiences={AUDIENCE},
            now=NOW,
            algorithms=EVERY_ALGORITHM,
            longest_life=timedelta(days=1),
        )
    except TokenRefused:
        return None


@given(st.text() | st.from_regex(r"[\w-]*\.[\w-]*\.[\w-]*", fullmatch=True) | st.text('{}".[]:,ae', max_size=200))
def test_no_text_is_a_token_by_chance(text: str) -> None:
    assert judged(text) is None
    claimed_end(text)


@given(st.binary(), st.binary(), st.binary())
def test_no_bytes_in_the_form_of_a_token_are_one_by_chance(head: bytes, payload: bytes, signature: bytes) -> None:
    assert judged(f"{base64url(head)}.{base64url(payload)}.{base64url(signature)}") is None


@given(st.integers(0, len(TOKEN) - 1), st.characters() | st.sampled_from("AZaz09-_.=+/ \n\0"))
def test_no_change_of_a_character_is_overlooked(place: int, character: str) -> None:
    changed = TOKEN[:place] + character + TOKEN[place + 1 :]
    assert (judged(changed) is not None) == (changed == TOKEN)


@given(st.dictionaries(CLAIM_NAMES, ANY_JSON))
def test_whatever_an_issuer_signs_becomes_claims_or_is_refused(changes: dict[str, JSON]) -> None:
    payload = ISSUER.payload(NOW) | changes
    token = ISSUER.sign(json.dumps(payload).encode())
    if (claims := judged(token)) is None:
        return
    assert claims.to_document() == payload
    assert unchangeable(claims.members)
    assert (claims.issuer, AUDIENCE in claims.audiences) == (ISSUER.issuer, True)
    assert NOW - timedelta(minutes=1) < claims.expires_at <= NOW + timedelta(days=2)


@given(st.dictionaries(HEADER_NAMES, ANY_JSON))
def test_whatever_a_header_says_the_key_that_signed_decides(changes: dict[str, JSON]) -> None:
    header: dict[str, JSON] = {"alg": "ES256", "kid": ISSUER.key_id}
    token = ISSUER.sign(ISSUER.payload(NOW), header=json.dumps(header | changes).encode())
    if judged(token) is None:
        return
    said = unproven(token).header
    assert said["alg"] == "ES256"
    assert said.get("kid") in {None, ISSUER.key_id}
    assert not {"crit", "b64", "jwk", "jku", "x5c"} & said.keys()


@given(
    st.lists(
        st.tuples(
            st.sampled_from([b"authorization", "Authorization", b"cookie", b"x-token"]) | st.binary() | st.text(),
            st.binary() | st.text() | st.sampled_from([b"Bearer a", "Bearer b", b"session=a; session", "Bearer a"]),
        ),
        max_size=6,
    ),
    st.binary()
    | st.text()
    | st.sampled_from([b"access_token=a", "access_token=%61&access_token=a", "&&=&access_token"]),
)
def test_whatever_a_request_holds_it_has_one_token_or_none_or_is_refused(
    headers: list[tuple[str | bytes, str | bytes]], query: str | bytes
) -> None:
    try:
        found = find_token(PLACES, headers, query)
    except TokenRefused:
        return
    assert found is None or (found.token and found.location in PLACES)


@given(ANY_JSON)
def test_no_document_is_a_key_set_by_chance(document: JSON) -> None:
    for text in (json.dumps(document), json.dumps({"keys": document}), json.dumps({"keys": [document]})):
        try:
            keys = KeySet.from_json(text)
        except InvalidKeySet:
            continue
        assert keys.keys == ()


@given(
    st.sampled_from(sorted(EVERY_ALGORITHM)), st.dictionaries(KEY_NAMES, ANY_JSON | st.text("AQab09-_", max_size=90))
)
def test_a_damaged_key_is_left_out_or_makes_sense(algorithm: str, changes: dict[str, JSON]) -> None:
    entry = TokenIssuer(algorithm).jwk() | changes
    good = ISSUER.jwk()
    try:
        keys = KeySet.from_document({"keys": [entry, good]})
    except InvalidKeySet:
        assert "d" in changes
        return
    assert ISSUER.key.public_key() in [key.public_key for key in keys.keys]
    assert all(key.algorithms <= EVERY_ALGORITHM and key.algorithms for key in keys.keys)


@given(st.text("ABQgwZz019-_=+/ é", max_size=12) | st.binary().map(base64url))
def test_base64url_has_one_spelling(text: str) -> None:
    try:
        octets = base64url_octets(text)
    except MalformedError:
        with pytest.raises((ValueError, AssertionError)):
            assert base64url(base64.b64decode(text + "=" * (-len(text) % 4), b"-_", validate=True)) == text
    else:
        assert base64url(octets) == text


@given(st.ip_addresses() | st.text("0123456789abcdef.:%[]", max_size=20))
def test_an_address_is_judged_whatever_it_is(address: IPv4Address | IPv6Address | str) -> None:
    careful, careless = why_not_dialled(str(address)), why_not_dialled(str(address), allow_loopback=True)
    assert careful or not careless
    if not isinstance(address, str):
        assert careful or not (address.is_loopback or address.is_link_local or address.is_multicast)


@given(st.ip_addresses(network="169.254.0.0/16"), st.integers(0, 2**64 - 1))
def test_metadata_is_never_dialled_however_it_is_spelled(address: IPv4Address, rest: int) -> None:
    number = int(address)
    spelled = [
        address,
        IPv6Address((0xFFFF << 32) | number),
        IPv6Address(number),
        IPv6Address((0x64FF9B << 96) | number),
        IPv6Address((0x2002 << 112) | (number << 80) | rest),
        IPv6Address((0x20010000 << 96) | (number << 64) | rest),
        IPv6Address((0x20010000 << 96) | (rest << 32 & (2**96 - 1)) | (number ^ 0xFFFF_FFFF)),
    ]
    assert [str(one) for one in spelled if not why_not_dialled(str(one), allow_loopback=True)] == []


def unchangeable(value: FrozenJSON) -> bool:
    if isinstance(value, Mapping):
        return not isinstance(value, dict) and all(map(unchangeable, value.values()))
    return not isinstance(value, list) and (not isinstance(value, tuple) or all(map(unchangeable, value)))
