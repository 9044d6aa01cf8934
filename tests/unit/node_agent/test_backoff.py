"""When to try again."""

from __future__ import annotations

from datetime import timedelta

from node_agent.backoff import Backoff

SECOND = timedelta(seconds=1)


class Monotonic:
    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


def backoff(draw: float = 1 - 1e-12) -> tuple[Backoff, Monotonic]:
    clock = Monotonic()
    return Backoff(first=SECOND, longest=8 * SECOND, monotonic=clock, draw=lambda: draw), clock


def test_waits_double_up_to_a_bound() -> None:
    waits, _ = backoff()
    assert [round(waits.failed().total_seconds()) for _ in range(5)] == [1, 2, 4, 8, 8]
    assert waits.attempts == 5


def test_a_success_forgets_the_failures() -> None:
    waits, _ = backoff()
    waits.failed()
    waits.failed()
    waits.succeeded()
    assert waits.remaining() == timedelta()
    assert round(waits.failed().total_seconds()) == 1


def test_a_hint_is_honoured_and_spread_and_bounded() -> None:
    early, late = backoff(draw=0)[0], backoff()[0]
    assert early.failed(20 * SECOND) == 20 * SECOND
    assert 20 * SECOND < late.failed(20 * SECOND) <= 25 * SECOND
    assert late.failed(timedelta(days=9)) < timedelta(minutes=13)
    assert late.failed(timedelta(milliseconds=1)) > SECOND


def test_what_remains_runs_down_and_never_below_nothing() -> None:
    waits, clock = backoff()
    assert waits.remaining() == timedelta()
    wait = waits.failed()
    clock.time += 0.25
    assert abs((wait - waits.remaining()).total_seconds() - 0.25) < 1e-6
    clock.time += 99
    assert waits.remaining() == timedelta()


def test_two_clients_do_not_come_back_together() -> None:
    assert backoff(draw=0.1)[0].failed() != backoff(draw=0.9)[0].failed()


def test_it_is_known_since_when_it_fails_also_where_it_is_to_be_tried_at_once() -> None:
    seconds = 100.0
    backoff = Backoff(monotonic=lambda: seconds, draw=lambda: 0.5)
    assert backoff.failing_for() is None
    backoff.failed()
    seconds = 130.0
    backoff.failed()
    assert backoff.failing_for() == timedelta(seconds=30)
    backoff.hurry()
    assert (backoff.remaining(), backoff.failing_for()) == (timedelta(), timedelta(seconds=30))
    backoff.succeeded()
    assert backoff.failing_for() is None
