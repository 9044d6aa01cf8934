"""When to renew and when to try again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from istio_auth.rotation import remaining_share, renewal_due, retry_delay

START = datetime(2030, 1, 1, tzinfo=UTC)
END = START + timedelta(hours=24)


def test_renewal_is_due_around_half_life_and_moved_by_the_draw_alone() -> None:
    assert renewal_due(START, END, draw=0.5) == START + timedelta(hours=12)
    assert renewal_due(START, END, draw=0.0) == START + timedelta(hours=12) - timedelta(hours=1.2)
    assert renewal_due(START, END, draw=0.999999) < START + timedelta(hours=12) + timedelta(hours=1.2)
    assert renewal_due(START, END, draw=0.3) == renewal_due(START, END, draw=0.3)


def test_shares_can_be_set() -> None:
    assert renewal_due(START, END, draw=0.5, ratio=0.75, jitter=0.2) == START + timedelta(hours=18)


@pytest.mark.parametrize(("ratio", "jitter"), [(0.0, 0.0), (1.0, 0.0), (0.05, 0.1), (0.95, 0.1), (-1, 0), (0.5, 1.0)])
def test_shares_that_lead_out_of_the_life_are_refused(ratio: float, jitter: float) -> None:
    with pytest.raises(ValueError, match="lifetime"):
        renewal_due(START, END, draw=0.5, ratio=ratio, jitter=jitter)


def test_retries_back_off_and_stay_bounded() -> None:
    first, longest = timedelta(seconds=1), timedelta(seconds=30)
    waits = [retry_delay(attempt, draw=1 - 1e-12, first=first, longest=longest) for attempt in range(1, 9)]
    assert [round(wait.total_seconds()) for wait in waits] == [1, 2, 4, 8, 16, 30, 30, 30]
    assert retry_delay(1, draw=0, first=first, longest=longest) == first / 2
    assert retry_delay(10**9, draw=0.5, first=first, longest=longest) == longest * 0.75


def test_even_days_between_attempts_do_not_overflow() -> None:
    assert retry_delay(99, draw=0, first=timedelta(days=1), longest=timedelta(days=2)) == timedelta(days=1)


def test_the_remaining_share_runs_from_one_to_nothing() -> None:
    assert remaining_share(START, END, START - timedelta(days=9)) == 1
    assert remaining_share(START, END, START) == 1
    assert remaining_share(START, END, START + timedelta(hours=18)) == 0.25
    assert remaining_share(START, END, END) == 0
    assert remaining_share(START, END, END + timedelta(days=9)) == 0
    assert remaining_share(START, START, START) == 0
    assert remaining_share(END, START, START) == 0
