"""TokenVerifier: the token of a request, by the one rule that is about its issuer."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime, timedelta

import pytest

from istio_auth.errors import ConfigurationError, NotReady
from istio_auth.jwks import KeySet
from istio_auth.tokens import Claims, TokenFault, TokenRefused
from istio_auth.tokens.compact import CompactToken
from istio_auth.tokens.issuer_keys import IssuerStatus
from istio_auth.tokens.key_sources import RemoteKeys
from istio_auth.tokens.locations import InCookie, InHeader
from istio_auth.tokens.rules import TokenRule
from istio_auth.tokens.verifier import TokenVerifier
from istio_auth.tokens.verify import check_signature
from tests.fakes.clock import FakeClock
from tests.fakes.token_issuer import AUDIENCE, HOUR, TokenIssuer

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)
ONE = TokenIssuer(issuer="https://one.test", place=40)
TWO = TokenIssuer(issuer="https://two.test", place=41)
TICKET = InHeader("x-ticket", "Ticket ")


def two_issuers(clock: FakeClock | None = None) -> TokenVerifier:
    return TokenVerifier(
        [
            TokenRule(ONE.issuer, {AUDIENCE}, keys=ONE.keys(), required=["colour"]),
            TokenRule(TWO.issuer, {"tickets"}, keys=TWO.keys(), locations=[TICKET, InCookie("ticket")]),
        ],
        clock=clock or FakeClock(NOW),
    )


async def bearer(verifier: TokenVerifier, token: str) -> Claims | None:
    return await verifier.verify([(b"Authorization", f"Bearer {token}".encode())])


async def refused(verifier: TokenVerifier, *headers: tuple[str, str], query: str = "") -> TokenFault:
    with pytest.raises(TokenRefused) as caught:
        await verifier.verify(headers, query)
    return caught.value.fault


async def test_a_request_speaks_for_who_its_token_is_of() -> None:
    verifier = two_issuers()
    claims = await bearer(verifier, ONE.token(NOW, sub="alice", colour="blue"))
    assert claims is not None
    assert (claims.issuer, claims.subject, claims.members["colour"]) == (ONE.issuer, "alice", "blue")
    claims = await verifier.verify([], f"access_token={ONE.token(NOW, colour='red')}")
    assert claims is not None
    assert claims.members["colour"] == "red"


async def test_a_request_without_a_token_speaks_for_nobody() -> None:
    assert await two_issuers().verify([("accept", "*/*")], "x=1") is None


async def test_each_issuer_has_its_own_places_audiences_and_keys() -> None:
    verifier = two_issuers()
    ticket = TWO.token(NOW, aud="tickets")
    for headers in ([("X-Ticket", f"Ticket {ticket}")], [("cookie", f"a=b; ticket={ticket}")]):
        claims = await verifier.verify(headers)
        assert claims is not None
        assert claims.issuer == TWO.issuer
    one = ONE.token(NOW, colour="blue")
    assert await refused(verifier, ("authorization", f"Bearer {ticket}")) is TokenFault.LOCATION
    assert await refused(verifier, ("x-ticket", f"Ticket {one}")) is TokenFault.LOCATION
    assert await refused(verifier, ("x-ticket", f"Ticket {TWO.token(NOW)}")) is TokenFault.AUDIENCE
    assert await refused(verifier, ("x-ticket", f"Ticket {TWO.token(NOW, aud=AUDIENCE)}")) is TokenFault.AUDIENCE
    forged = ONE.sign(TWO.payload(NOW, aud="tickets"))
    assert await refused(verifier, ("x-ticket", f"Ticket {forged}")) is TokenFault.UNKNOWN_KEY
    forged = ONE.sign(TWO.payload(NOW, aud="tickets"), header={"kid": TWO.key_id})
    assert await refused(verifier, ("x-ticket", f"Ticket {forged}")) is TokenFault.SIGNATURE


async def test_the_rule_asks_for_claims() -> None:
    assert await refused(two_issuers(), ("authorization", f"Bearer {ONE.token(NOW)}")) is TokenFault.CLAIM


async def test_a_token_of_nobody_we_know_is_refused() -> None:
    verifier = two_issuers()
    stranger = TokenIssuer(issuer="https://three.test")
    assert await refused(verifier, ("authorization", f"Bearer {stranger.token(NOW)}")) is TokenFault.ISSUER
    assert await refused(verifier, ("authorization", f"Bearer {ONE.token(NOW, iss=None)}")) is TokenFault.CLAIM
    assert await refused(verifier, ("authorization", f"Bearer {ONE.token(NOW, iss=['x'])}")) is TokenFault.CLAIM


async def test_two_tokens_are_refused_though_each_is_good() -> None:
    one, two = ONE.token(NOW, colour="blue"), TWO.token(NOW, aud="tickets")
    headers = ("authorization", f"Bearer {one}"), ("x-ticket", f"Ticket {two}")
    assert await refused(two_issuers(), *headers) is TokenFault.SEVERAL
    for header in headers:
        assert await two_issuers().verify([header]) is not None
    assert await refused(two_issuers(), headers[0], query=f"access_token={one}") is TokenFault.SEVERAL


async def test_something_that_is_no_token_is_refused_where_one_may_stand() -> None:
    assert await refused(two_issuers(), ("authorization", "Bearer opaque")) is TokenFault.MALFORMED
    assert await refused(two_issuers(), ("authorization", f"Bearer {'x' * 1_000_000}")) is TokenFault.TOO_LONG
    assert await refused(two_issuers(), query="access_token=" + "%41" * 1_000_000) is TokenFault.TOO_LONG


async def test_the_rule_decides_the_algorithms() -> None:
    edwards, curve = TokenIssuer("EdDSA"), TokenIssuer("ES256", place=1)
    keys = KeySet((*edwards.keys().keys, *curve.keys().keys))
    for allowed, other in ((edwards, curve), (curve, edwards)):
        verifier = TokenVerifier(
            [TokenRule(edwards.issuer, None, keys=keys, algorithms={allowed.algorithm})], clock=FakeClock(NOW)
        )
        assert await bearer(verifier, allowed.token(NOW)) is not None
        assert await refused(verifier, ("authorization", f"Bearer {other.token(NOW)}")) is TokenFault.ALGORITHM


async def test_a_token_is_as_good_again_as_it_is_then() -> None:
    clock = FakeClock(NOW)
    verifier = two_issuers(clock)
    token = ONE.token(NOW, colour="blue")
    first = await bearer(verifier, token)
    clock.advance(HOUR)
    assert await bearer(verifier, token) == first
    clock.advance(timedelta(minutes=1))
    assert await refused(verifier, ("authorization", f"Bearer {token}")) is TokenFault.EXPIRED
    clock.advance(-3 * HOUR)
    assert await refused(verifier, ("authorization", f"Bearer {token}")) is TokenFault.NOT_YET_VALID


class TestATokenThatWasVerified:
    @pytest.fixture(autouse=True)
    def checks(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """The names of the keys that signatures were checked with."""
        made: list[str] = []

        def counted(parts: CompactToken, keys: KeySet, algorithms: Collection[str]) -> None:
            made.append(str(parts.key_id))
            check_signature(parts, keys, algorithms)

        monkeypatch.setattr("istio_auth.tokens.verifier.check_signature", counted)
        return made

    async def test_is_known_again(self, checks: list[str]) -> None:
        verifier, token = two_issuers(), ONE.token(NOW, colour="blue")
        first = await bearer(verifier, token)
        for _ in range(5):
            assert await bearer(verifier, token) is first
        assert len(checks) == 1
        other = ONE.token(NOW, colour="red")
        assert await bearer(verifier, other) != first
        assert len(checks) == 2

    async def test_is_judged_by_its_place_again(self) -> None:
        verifier, token = two_issuers(), ONE.token(NOW, colour="blue")
        assert await bearer(verifier, token) is not None
        assert await refused(verifier, ("x-ticket", f"Ticket {token}")) is TokenFault.LOCATION
        assert await bearer(verifier, token) is not None

    async def test_is_judged_by_its_times_again(self, checks: list[str]) -> None:
        clock = FakeClock(NOW)
        verifier, token = two_issuers(clock), ONE.token(NOW, colour="blue")
        assert await bearer(verifier, token) is not None
        clock.advance(2 * HOUR)
        assert await refused(verifier, ("authorization", f"Bearer {token}")) is TokenFault.EXPIRED
        clock.advance(-HOUR)
        assert await bearer(verifier, token) is not None
        assert len(checks) == 1

    async def test_is_told_from_one_that_looks_like_it(self) -> None:
        verifier, token = two_issuers(), ONE.token(NOW, colour="blue")
        assert await bearer(verifier, token) is not None
        head, payload, _ = token.split(".")
        forged = f"{head}.{payload}.{ONE.token(NOW).rpartition('.')[2]}"
        assert await refused(verifier, ("authorization", f"Bearer {forged}")) is TokenFault.SIGNATURE

    async def test_is_remembered_with_so_many_others_and_no_more(self, checks: list[str]) -> None:
        rules = [TokenRule(ONE.issuer, None, keys=ONE.keys())]
        tokens = [ONE.token(NOW, colour=str(number)) for number in range(3)]
        for remembered, checked in ((0, 6), (2, 4), (3, 3)):
            checks.clear()
            verifier = TokenVerifier(rules, clock=FakeClock(NOW), remembered=remembered)
            for token in (tokens[0], tokens[1], tokens[0], tokens[2], tokens[0], tokens[1]):
                assert await bearer(verifier, token) is not None
            assert len(checks) == checked
            assert len(verifier._verified_before) <= remembered

    async def test_is_nothing_if_it_was_refused(self) -> None:
        verifier = two_issuers()
        for _ in range(3):
            assert await refused(verifier, ("authorization", f"Bearer {ONE.token(NOW, aud='x')}"))
        assert not verifier._verified_before


async def test_a_token_at_hand_is_verified_wherever_it_came_from() -> None:
    claims = await two_issuers().verify_token(TWO.token(NOW, aud="tickets"))
    assert claims.issuer == TWO.issuer
    for text in ("", "\ud800", "x" * 100_000):
        with pytest.raises(TokenRefused):
            await two_issuers().verify_token(text)


async def test_keys_at_hand_are_ready_and_others_are_not_before_they_are_fetched() -> None:
    remote = RemoteKeys("https://two.test/keys")
    verifier = TokenVerifier(
        [TokenRule(ONE.issuer, None, keys=ONE.keys()), TokenRule(TWO.issuer, None, keys=remote)], clock=FakeClock(NOW)
    )
    one, two = verifier.status()
    assert one == IssuerStatus(ONE.issuer, ready=True, keys=1)
    assert (two.issuer, two.ready, two.age) == (TWO.issuer, False, None)
    assert "async with" in two.trouble
    assert await bearer(verifier, ONE.token(NOW)) is not None
    with pytest.raises(NotReady, match="async with"):
        await bearer(verifier, TWO.token(NOW))


def test_an_issuer_has_one_rule() -> None:
    rule = TokenRule(ONE.issuer, {"a"}, keys=ONE.keys())
    for rules in ([], [rule, TokenRule(ONE.issuer, {"b"}, keys=ONE.keys())], [rule, rule]):
        with pytest.raises(ConfigurationError):
            TokenVerifier(rules)
    assert TokenVerifier([rule]).status()[0].issuer == ONE.issuer


async def test_a_verifier_is_entered_once_at_a_time() -> None:
    verifier = two_issuers()
    for _ in range(2):
        async with verifier:
            with pytest.raises(ConfigurationError):
                await verifier.__aenter__()
            assert await bearer(verifier, ONE.token(NOW, colour="blue")) is not None
