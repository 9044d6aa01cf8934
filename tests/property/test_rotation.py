"""Whatever the lifetime and the dice: renewal falls into the life, and waits into their bounds."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import assume, given
from hypothesis import strategies as st

from istio_auth.rotation import remaining_share, renewal_due, retry_delay

draws = st.floats(0, 1, exclude_max=True)
instants = st.datetimes(datetime(2000, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001  # see zones
lifetimes = st.timedeltas(timedelta(seconds=1), timedelta(days=36500))
durations = st.timedeltas(timedelta(milliseconds=1), timedelta(days=3650))


@given(instants, lifetimes, draws, st.floats(0.01, 0.99), st.floats(0, 0.9))
def test_renewal_is_always_due_within_the_life(
    begin: datetime, life: timedelta, draw: float, ratio: float, jitter: float
) -> None:
    assume(jitter / 2 < ratio < 1 - jitter / 2)
    due = renewal_due(begin, begin + life, draw=draw, ratio=ratio, jitter=jitter)
    assert begin <= due <= begin + life
    assert renewal_due(begin, begin + life, draw=draw) < begin + life


@given(instants, lifetimes, st.lists(draws, min_size=2, max_size=2).map(sorted))
def test_who_draws_higher_renews_later(begin: datetime, life: timedelta, pair: list[float]) -> None:
    earlier, later = (renewal_due(begin, begin + life, draw=draw) for draw in pair)
    assert earlier <= later


@given(st.integers(1, 10**6), draws, durations, durations)
def test_a_wait_is_between_half_its_bound_and_its_bound(
    attempt: int, draw: float, first: timedelta, longest: timedelta
) -> None:
    wait = retry_delay(attempt, draw=draw, first=first, longest=longest)
    assert min(first, longest) / 2 <= wait <= longest
    assert wait <= retry_delay(attempt + 1, draw=draw, first=first, longest=longest)


@given(instants, lifetimes, instants)
def test_a_share_is_a_share(begin: datetime, life: timedelta, now: datetime) -> None:
    assert 0 <= remaining_share(begin, begin + life, now) <= 1
