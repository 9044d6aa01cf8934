"""The corpus of hostile tokens: each is refused for its one fault, by the function and by the verifier of requests."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from istio_auth.jwks import KeySet
from istio_auth.tokens import MAX_TOKEN, TokenFault, TokenRefused, claimed_end, unproven, verify_token
from istio_auth.tokens.rules import TokenRule
from istio_auth.tokens.verifier import TokenVerifier
from tests.fakes.clock import FakeClock
from tests.fakes.token_issuer import AUDIENCE, TokenIssuer
from tests.vectors.tokens import LONGEST_LIFE, HostileToken, hostile_tokens

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)
ISSUER = TokenIssuer(place=20)
KEYS = KeySet((*TokenIssuer("RS256").keys(alg=None).keys, *ISSUER.keys().keys))
CORPUS = hostile_tokens(ISSUER, NOW)
VERIFIER = TokenVerifier(
    [TokenRule(ISSUER.issuer, {AUDIENCE}, keys=KEYS, longest_life=LONGEST_LIFE)], clock=FakeClock(NOW)
)


def judged(token: str) -> TokenFault | None:
    try:
        verify_token(token, KEYS, issuer=ISSUER.issuer, audiences={AUDIENCE}, now=NOW, longest_life=LONGEST_LIFE)
    except TokenRefused as refused:
        return refused.fault
    return None


async def judged_in_a_request(token: str) -> TokenFault | None:
    try:
        await VERIFIER.verify([("Authorization", f"Bearer {token}")])
    except TokenRefused as refused:
        return refused.fault
    return None


async def test_the_corpus_without_its_fault_passes() -> None:
    assert len(CORPUS) > 150
    assert judged(ISSUER.token(NOW)) is None
    assert await judged_in_a_request(ISSUER.token(NOW)) is None


@pytest.mark.parametrize("hostile", CORPUS.values(), ids=CORPUS.keys())
async def test_a_hostile_token_is_refused_for_its_fault(hostile: HostileToken) -> None:
    assert judged(hostile.text) is hostile.fault
    if hostile.text:  # an empty one is none
        assert await judged_in_a_request(hostile.text) is hostile.fault


def test_a_token_that_ends_early_is_refused_wherever_it_does() -> None:
    token = ISSUER.token(NOW)
    for end in range(len(token)):
        assert judged(token[:end]) in {TokenFault.MALFORMED, TokenFault.SIGNATURE}, end
        assert judged(token[end + 1 :]) is not None, end


def test_a_token_with_any_one_character_changed_is_refused() -> None:
    token = ISSUER.token(NOW)
    for place, character in enumerate(token):
        other = "A" if character != "A" else "B"
        assert judged(token[:place] + other + token[place + 1 :]) is not None, place


@pytest.mark.parametrize("hostile", CORPUS.values(), ids=CORPUS.keys())
def test_what_a_hostile_token_says_of_itself_is_read_or_refused(hostile: HostileToken) -> None:
    claimed_end(hostile.text)
    if hostile.fault in {TokenFault.TOO_LONG, TokenFault.MALFORMED, TokenFault.HEADER, TokenFault.EXTENSION}:
        with pytest.raises(TokenRefused) as caught:
            unproven(hostile.text)
        assert caught.value.fault is hostile.fault


@pytest.mark.parametrize("depth", [900, 1_000, 3_000, 5_000])
def test_how_deep_a_token_is_nested_costs_nothing_but_itself(depth: int) -> None:
    nested = f'"a":{"[" * depth}{"]" * depth}}}'
    claims = f"{json.dumps(ISSUER.payload(NOW))[:-1]},{nested}"
    # What Python's parser takes differs between its versions.
    assert judged(ISSUER.sign(claims.encode())) in {TokenFault.MALFORMED, TokenFault.CLAIM}
    header = f'{{"alg":"ES256","kid":"{ISSUER.key_id}",{nested}'
    assert judged(ISSUER.sign(ISSUER.payload(NOW), header=header.encode())) in {TokenFault.MALFORMED, None}


def test_only_the_length_of_what_is_too_long_is_looked_at() -> None:
    assert judged("é" * (MAX_TOKEN + 1)) is TokenFault.TOO_LONG
    assert judged("é" * MAX_TOKEN) is TokenFault.MALFORMED
