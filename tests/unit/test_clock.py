"""Durations and instants, as people write and read them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from istio_auth.clock import duration_text, in_words, parse_duration, whole_seconds
from istio_auth.errors import ConfigurationError
from istio_auth.system_clock import SystemClock


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("15m", 900),
        ("24h", 86400),
        ("30d", 30 * 86400),
        ("1h30m", 5400),
        ("1d2h3m4s5ms", 93784.005),
        ("250ms", 0.25),
        (" 5s ", 5),
        ("36500d", 36500 * 86400),
    ],
)
def test_durations_are_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "5", "s", "5 s", "1.5h", "-5s", "5x", "5S", "0s", "0h0m", "5s!", "\u0665s", "5s\n1",
        "1000000000s", "36501d", "36500d1s", "999999999d999999999d", "9" * 5000 + "s",
    ],
)  # fmt: skip
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_duration(text)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("duration", "words"),
    [
        (timedelta(), "0 seconds"),
        (timedelta(milliseconds=999), "0 seconds"),
        (timedelta(seconds=1), "1 second"),
        (timedelta(seconds=61), "1 minute 1 second"),
        (timedelta(hours=23, minutes=59, seconds=59), "23 hours 59 minutes"),
        (timedelta(hours=1, seconds=5), "1 hour 5 seconds"),
        (timedelta(days=3, hours=4, minutes=5), "3 days 4 hours"),
        (timedelta(days=3650), "3650 days"),
        (-timedelta(minutes=2), "2 minutes"),
    ],
)
def test_durations_are_told_in_their_two_largest_units(duration: timedelta, words: str) -> None:
    assert in_words(duration) == words


def test_an_instant_is_cut_to_what_a_certificate_can_say() -> None:
    instant = datetime(2030, 1, 1, 13, 0, 0, 999_999, tzinfo=timezone(timedelta(hours=1)))
    assert whole_seconds(instant) == datetime(2030, 1, 1, 12, tzinfo=UTC)
    assert whole_seconds(instant).tzinfo is UTC


def test_the_machine_keeps_utc() -> None:
    before = datetime.now(UTC)
    assert before <= SystemClock().now() <= datetime.now(UTC)
    assert SystemClock().now().tzinfo is UTC


@pytest.mark.parametrize("text", ["1ms", "1m30s", "1d", "1d12h", "36500d", "1d1h1m1s1ms"])
def test_a_duration_is_written_as_it_is_read(text: str) -> None:
    assert duration_text(parse_duration(text)) == text


def test_no_duration_is_written_with_a_unit() -> None:
    assert duration_text(timedelta()) == "0s"
