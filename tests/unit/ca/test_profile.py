"""How long certificates live."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from ca.profile import IssuanceProfile, TTLRefused, Validity
from istio_auth.errors import Code, ConfigurationError, NotReady

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
CHAIN = Validity(NOW - DAY, NOW + 3650 * DAY)
PROFILE = IssuanceProfile()


@pytest.mark.parametrize("nothing", [None, timedelta(), -HOUR, timedelta(seconds=-(2**33))])
def test_who_asks_for_no_lifetime_gets_the_default(nothing: timedelta | None) -> None:
    assert PROFILE.lifetime(nothing) == timedelta(hours=24)


@pytest.mark.parametrize("ttl", [timedelta(seconds=1), HOUR, 90 * DAY])
def test_up_to_the_maximum_everybody_gets_what_they_ask_for(ttl: timedelta) -> None:
    assert PROFILE.lifetime(ttl) == ttl


def test_more_than_the_maximum_is_refused() -> None:
    with pytest.raises(TTLRefused) as caught:
        PROFILE.lifetime(90 * DAY + timedelta(seconds=1))
    assert caught.value.code is Code.MALFORMED


def test_more_than_the_maximum_is_clamped_where_the_operator_wants_that() -> None:
    assert IssuanceProfile(clamp_excess_ttl=True).lifetime(1000 * DAY) == 90 * DAY


def test_a_grant_bounds_the_lifetime_and_is_the_lifetime_when_none_is_asked_for() -> None:
    assert PROFILE.lifetime(None, granted=HOUR) == HOUR
    assert PROFILE.lifetime(2 * HOUR, granted=HOUR) == HOUR
    assert PROFILE.lifetime(timedelta(minutes=1), granted=HOUR) == timedelta(minutes=1)
    assert PROFILE.lifetime(None, granted=48 * HOUR) == 48 * HOUR
    assert PROFILE.lifetime(None, granted=1000 * DAY) == 90 * DAY


@pytest.mark.parametrize("requested", [None, HOUR])
@pytest.mark.parametrize("granted", [timedelta(), -HOUR])
def test_a_grant_of_no_lifetime_is_not_taken_for_a_grant_of_any(
    requested: timedelta | None, granted: timedelta
) -> None:
    assert PROFILE.lifetime(requested, granted=granted) == timedelta(seconds=1)


def test_a_lifetime_below_a_second_becomes_one() -> None:
    assert PROFILE.lifetime(timedelta(milliseconds=1)) == timedelta(seconds=1)


@pytest.mark.parametrize(
    ("ttl", "backdate"),
    [(24 * HOUR, timedelta(minutes=2)), (timedelta(minutes=10), timedelta(minutes=1)), (20 * HOUR, 2 * HOUR / 60)],
)
def test_certificates_begin_two_minutes_or_a_tenth_of_their_life_ago(ttl: timedelta, backdate: timedelta) -> None:
    assert PROFILE.validity(ttl, NOW, within=CHAIN) == Validity(NOW - backdate, NOW + ttl)


def test_a_certificate_never_begins_before_its_issuer() -> None:
    issuer = Validity(NOW - timedelta(seconds=30), NOW + DAY)
    assert PROFILE.validity(HOUR, NOW, within=issuer).not_before == issuer.not_before


def test_a_certificate_never_outlives_its_chain_and_is_backdated_by_what_is_left_of_it() -> None:
    chain = Validity(NOW - DAY, NOW + timedelta(minutes=5))
    assert PROFILE.validity(24 * HOUR, NOW, within=chain) == Validity(NOW - timedelta(seconds=30), chain.not_after)


def test_the_ends_are_whole_seconds_and_never_later_than_meant() -> None:
    now = NOW + timedelta(microseconds=999_999)
    validity = PROFILE.validity(HOUR, now, within=CHAIN)
    assert validity == Validity(NOW - timedelta(minutes=2), NOW + HOUR)


@pytest.mark.parametrize("now", [CHAIN.not_after, CHAIN.not_after + DAY, CHAIN.not_before - timedelta(seconds=1)])
def test_nothing_is_signed_outside_the_life_of_the_chain(now: datetime) -> None:
    with pytest.raises(NotReady):
        PROFILE.validity(HOUR, now, within=CHAIN)
    assert PROFILE.validity(HOUR, CHAIN.not_before, within=CHAIN).not_before == CHAIN.not_before


@pytest.mark.parametrize("longest", [HOUR, HOUR + timedelta(seconds=1), DAY, 90 * DAY])
@pytest.mark.parametrize("fraction", [timedelta(), timedelta(microseconds=1), timedelta(microseconds=999_999)])
def test_a_spanning_validity_is_as_long_as_asked_for_from_end_to_end(longest: timedelta, fraction: timedelta) -> None:
    validity = PROFILE.validity_spanning(longest, NOW + fraction, within=CHAIN)
    assert validity == Validity(NOW - timedelta(minutes=2), NOW - timedelta(minutes=2) + longest)
    assert PROFILE.allowed(validity, NOW, within=CHAIN) == validity


def test_a_spanning_validity_is_bounded_by_the_profile_and_the_chain() -> None:
    minutes = timedelta(minutes=1)
    assert PROFILE.validity_spanning(365 * DAY, NOW, within=CHAIN) == Validity(NOW - 2 * minutes, NOW + 90 * DAY)
    chain = Validity(NOW - minutes, NOW + 30 * minutes)
    assert PROFILE.validity_spanning(DAY, NOW, within=chain) == chain
    with pytest.raises(NotReady):
        PROFILE.validity_spanning(DAY, chain.not_after, within=chain)


@pytest.mark.parametrize("backdate", [timedelta(), timedelta(minutes=1), timedelta(minutes=4)])
@pytest.mark.parametrize("longest", [HOUR, 365 * DAY])
def test_another_backdate_makes_no_longer_certificate(backdate: timedelta, longest: timedelta) -> None:
    validity = PROFILE.validity_spanning(longest, NOW, within=CHAIN, backdate=backdate)
    assert validity.not_before == NOW - backdate
    assert validity.not_after - validity.not_before == min(longest, 90 * DAY + min(backdate, PROFILE.backdate))
    assert PROFILE.allowed(validity, NOW, within=CHAIN) == validity


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (Validity(NOW, NOW + 90 * DAY + timedelta(minutes=2, seconds=2)), TTLRefused),
        (Validity(CHAIN.not_before - timedelta(seconds=1), NOW), NotReady),
        (Validity(CHAIN.not_after - HOUR, CHAIN.not_after + timedelta(seconds=1)), NotReady),
        (Validity(NOW, NOW), NotReady),
        (Validity(NOW + HOUR, NOW), NotReady),
        (Validity(NOW - HOUR, NOW), NotReady),
    ],
    ids=["too long", "before the chain", "after the chain", "empty", "turned round", "over"],
)
def test_a_settled_validity_that_does_not_hold_is_refused(wrong: Validity, error: type[Exception]) -> None:
    with pytest.raises(error):
        PROFILE.allowed(wrong, NOW, within=CHAIN)
    assert PROFILE.allowed(Validity(NOW - HOUR, NOW + HOUR), NOW, within=CHAIN)


@pytest.mark.parametrize(
    "wrong",
    [
        {"default_ttl": timedelta()},
        {"default_ttl": 2 * HOUR, "max_ttl": HOUR},
        {"backdate": -HOUR},
        {"backdate_share": 0.5},
        {"backdate_share": -0.1},
    ],
    ids=str,
)
def test_a_profile_that_contradicts_itself_is_refused(wrong: dict[str, timedelta]) -> None:
    with pytest.raises(ConfigurationError):
        IssuanceProfile(**wrong)  # type: ignore[arg-type]  # of the types of their fields
