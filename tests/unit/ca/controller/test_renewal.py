"""The renewal rule: a share or a minimum, bounded, and spread."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from ca.controller.renewal import RenewalRule, draw_for
from istio_auth.errors import ConfigurationError

START = datetime(2030, 1, 1, tzinfo=UTC)
HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)


@pytest.mark.parametrize(
    ("rule", "lifetime", "remaining"),
    [
        (RenewalRule(jitter=0), 24 * HOUR, 12 * HOUR),
        (RenewalRule(ratio=0.25, jitter=0), 24 * HOUR, 6 * HOUR),
        (RenewalRule(jitter=0), 15 * MINUTE, 10 * MINUTE),
        (RenewalRule(jitter=0), 10 * MINUTE, 8 * MINUTE),
        (RenewalRule(minimum_grace=100 * HOUR, jitter=0), 10 * HOUR, 8 * HOUR),
        (RenewalRule(minimum_grace=timedelta(), ratio=0.1, jitter=0), 10 * HOUR, HOUR),
        (RenewalRule(ratio=0.8, jitter=0), 10 * HOUR, 8 * HOUR),
    ],
)
def test_the_grace_is_the_longer_of_share_and_minimum_and_at_most_four_fifths(
    rule: RenewalRule, lifetime: timedelta, remaining: timedelta
) -> None:
    due = rule.due(START, START + lifetime, draw=0.5)
    assert abs(START + lifetime - remaining - due) <= timedelta(microseconds=10)


def test_the_spread_makes_a_renewal_earlier_and_never_puts_it_beyond_four_fifths() -> None:
    rule, a_moment = RenewalRule(jitter=0.1), timedelta(milliseconds=1)
    end = START + 10 * HOUR
    assert abs(rule.due(START, end, draw=0) - (end - 6 * HOUR)) < a_moment
    assert abs(rule.due(START, end, draw=1 - 1e-9) - (end - 5 * HOUR)) < a_moment
    short = START + 10 * MINUTE
    assert abs(rule.due(START, short, draw=0) - (START + 2 * MINUTE)) < a_moment
    assert abs(rule.due(START, short, draw=1 - 1e-9) - (START + 3 * MINUTE)) < a_moment


def test_a_certificate_without_a_life_is_due_at_its_end() -> None:
    assert RenewalRule().due(START, START, draw=0) == START
    assert RenewalRule().due(START, START - HOUR, draw=0) == START - HOUR


@pytest.mark.parametrize(
    "wrong",
    [{"ratio": 0.0}, {"ratio": 0.81}, {"ratio": -1}, {"minimum_grace": -HOUR}, {"jitter": -0.1}, {"jitter": 0.5}],
)
def test_a_rule_that_leads_out_of_the_life_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError):
        RenewalRule(**wrong)  # type: ignore[arg-type]  # by name


def test_a_draw_belongs_to_its_certificate_and_a_thousand_of_them_are_spread_evenly() -> None:
    assert draw_for("uid", 1) == draw_for("uid", 1) != draw_for("uid", 2) != draw_for("uid2", 2)
    draws = sorted(draw_for(f"uid-{number}", number) for number in range(1000))
    assert draws[0] >= 0
    assert draws[-1] < 1
    assert all(abs(draw - place / 1000) < 0.07 for place, draw in enumerate(draws))
