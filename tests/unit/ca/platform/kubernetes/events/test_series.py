"""Which occurrences are worth a write."""

from __future__ import annotations

from datetime import timedelta
from itertools import pairwise

from ca.platform.kubernetes.api.resources import SERVICE_ACCOUNTS
from ca.platform.kubernetes.events.series import EventSeries, Occurrence, Regarding
from tests.fakes.clock import FakeClock

ACCOUNT = Regarding(SERVICE_ACCOUNTS, "web", "shop", "uid-1")
FAILED = Occurrence(ACCOUNT, "Issue", "IssuanceFailed", "no")


def test_what_happens_again_and_again_is_counted_and_written_ever_more_seldom(clock: FakeClock) -> None:
    series, written = EventSeries(), []
    for second in range(3600):
        if series.count(FAILED, clock.now()):
            written.append(second)
        clock.advance(timedelta(seconds=1))
    assert written[:4] == [0, 5, 15, 35]
    assert len(written) < 20
    assert max(later - earlier for earlier, later in pairwise(written)) <= 300
    again = series.count(FAILED, clock.now() + timedelta(minutes=5))
    assert again is not None
    assert again.count == 3601


def test_another_reason_and_another_object_are_other_events(clock: FakeClock) -> None:
    series = EventSeries()
    other = Regarding(SERVICE_ACCOUNTS, "web", "shop", "uid-2")  # made anew under the same name
    assert series.count(FAILED, clock.now())
    assert series.count(Occurrence(ACCOUNT, "Issue", "Foreign", "no"), clock.now())
    assert series.count(Occurrence(other, "Issue", "IssuanceFailed", "no"), clock.now())
    assert not series.count(FAILED, clock.now())


def test_after_ten_quiet_minutes_it_is_a_new_event(clock: FakeClock) -> None:
    series = EventSeries()
    first = series.count(FAILED, clock.now())
    clock.advance(timedelta(minutes=10))
    second = series.count(FAILED, clock.now())
    assert first is not None
    assert second is not None
    assert second is not first
    assert second.count == 1


def test_only_so_many_are_remembered_and_those_that_go_on_stay(clock: FakeClock) -> None:
    series = EventSeries(capacity=2)
    accounts = [Occurrence(Regarding(SERVICE_ACCOUNTS, name, "shop"), "Issue", "No", "no") for name in "abc"]
    for occurrence in (accounts[0], accounts[1], accounts[0], accounts[2]):
        series.count(occurrence, clock.now())
    assert series.count(accounts[0], clock.now()) is None  # known
    assert series.count(accounts[1], clock.now()) is not None  # forgotten
