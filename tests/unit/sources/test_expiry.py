"""Of which SVIDs it is said, and when, that they end."""

from __future__ import annotations

from datetime import timedelta

from istio_auth.sources.expiry import due, notices
from istio_auth.svid import X509SVID
from tests.fakes.authority import HOUR, FakeAuthority


def lasting(authority: FakeAuthority, lifetime: timedelta, path: str = "/web") -> X509SVID:
    return authority.svid(path, not_before=authority.now, not_after=authority.now + lifetime)


def test_an_svid_is_late_in_the_last_fifth_of_its_life_and_then_ended(authority: FakeAuthority) -> None:
    svid = lasting(authority, 10 * HOUR)
    pending = notices([svid])
    assert [(notice.at - authority.now, notice.ended) for notice in pending] == [(8 * HOUR, False), (10 * HOUR, True)]
    assert due(pending, authority.now + 8 * HOUR - timedelta(seconds=1)) == ((), pending)
    late, rest = due(pending, authority.now + 8 * HOUR)
    assert [notice.ended for notice in late] == [False]
    assert [notice.ended for notice in due(rest, authority.now + 10 * HOUR)[0]] == [True]


def test_the_end_counts_that_comes_first_in_the_chain() -> None:
    root = FakeAuthority(lifetime=100 * HOUR)
    issuer = FakeAuthority(parent=root, lifetime=4 * HOUR)
    svid = lasting(issuer, 10 * HOUR)
    assert [notice.at for notice in notices([svid]) if notice.ended] == [issuer.now + 4 * HOUR]


def test_of_one_that_has_ended_it_is_not_said_that_it_was_late(authority: FakeAuthority) -> None:
    short, long = lasting(authority, HOUR), lasting(authority, 10 * HOUR)
    said, rest = due(notices([long, short]), authority.now + 9 * HOUR)
    assert [(notice.svid, notice.ended) for notice in said] == [(short, True), (long, False)]
    assert [(notice.svid, notice.ended) for notice in rest] == [(long, True)]


def test_nothing_is_said_twice_of_one_that_stays_and_nothing_of_one_that_went(authority: FakeAuthority) -> None:
    old, stays = lasting(authority, 10 * HOUR), lasting(authority, 10 * HOUR, "/db")
    said, pending = due(notices([old, stays]), authority.now + 9 * HOUR)
    assert len(said) == 2
    fresh = lasting(authority, 20 * HOUR)
    pending = notices([fresh, stays], [old, stays], pending)
    assert [(notice.svid, notice.ended) for notice in pending] == [(stays, True), (fresh, False), (fresh, True)]
