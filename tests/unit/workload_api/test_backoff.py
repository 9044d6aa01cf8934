"""When the Workload API is called again (Workload Endpoint 6, Workload API 4.1)."""

from __future__ import annotations

from datetime import timedelta

import pytest

from istio_auth.errors import (
    Exhausted,
    IstioAuthError,
    MalformedError,
    NotAuthenticated,
    NotAuthorized,
    NotReady,
    UnknownMethod,
)
from istio_auth.rpc.answers import UnreadableAnswer
from istio_auth.rpc.forking import Forked
from istio_auth.workload_api.backoff import CALM, LONGEST_HINT, Backoff

AT_ONCE, MOMENT = timedelta(), timedelta(milliseconds=10)


def backoff() -> Backoff:
    """One whose dice always show the most."""
    return Backoff(lambda: 0.9999999)


def seconds(wait: timedelta | None) -> float:
    assert wait is not None
    return round(wait.total_seconds(), 2)


def test_we_05_a_call_that_is_wrong_in_itself_is_not_made_again() -> None:
    assert backoff().failed(MalformedError("security header missing"), MOMENT) is None


def test_wa_02_a_method_that_is_not_supported_is_not_called_again() -> None:
    assert backoff().failed(UnknownMethod("no such method"), MOMENT) is None


def test_nothing_is_called_again_in_a_process_that_can_not_call() -> None:
    assert backoff().failed(Forked("forked"), MOMENT) is None


def test_an_agent_that_is_away_is_called_again_soon_and_then_less_often() -> None:
    waits = backoff()
    found = [seconds(waits.failed(NotReady("away"), MOMENT)) for _ in range(9)]
    assert found == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5, 5]


@pytest.mark.parametrize(
    "error",
    [NotAuthorized("no identity"), NotAuthenticated("who?"), IstioAuthError("broken"), UnreadableAnswer("bits")],
)
def test_wa_13_who_is_refused_asks_more_seldom(error: IstioAuthError) -> None:
    waits = backoff()
    assert [seconds(waits.failed(error, MOMENT)) for _ in range(7)] == [1, 2, 4, 8, 16, 30, 30]


def test_waits_are_spread_so_that_a_thousand_workloads_do_not_come_at_once() -> None:
    assert Backoff(lambda: 0.0).failed(NotReady("away"), MOMENT) == timedelta(milliseconds=50)
    draws = iter([0.0, 0.5])
    waits = Backoff(lambda: next(draws))
    assert waits.failed(NotReady("away"), MOMENT) == timedelta(milliseconds=50)
    assert waits.failed(NotReady("away"), MOMENT) == timedelta(milliseconds=150)


def test_wa_07_a_stream_that_ends_well_is_opened_again_at_once() -> None:
    waits = backoff()
    assert waits.ended(CALM) == AT_ONCE
    assert waits.ended(CALM) == AT_ONCE
    assert backoff().ended(MOMENT) == AT_ONCE


def test_a_stream_that_keeps_ending_is_not_opened_in_a_hot_loop() -> None:
    waits = backoff()
    assert [seconds(waits.ended(MOMENT)) for _ in range(4)] == [0, 0.1, 0.2, 0.4]


def test_a_stream_that_ends_well_and_badly_by_turns_is_not_opened_in_a_hot_loop_either() -> None:
    waits = backoff()
    turns = [seconds(wait) for _ in range(6) for wait in (waits.ended(MOMENT), waits.failed(NotReady("away"), MOMENT))]
    assert turns[-2:] == [1.6, 3.2]


def test_a_stream_that_lived_starts_a_new_count() -> None:
    waits = backoff()
    for _ in range(9):
        waits.failed(NotReady("away"), MOMENT)
    assert seconds(waits.failed(NotReady("away"), CALM)) == 0.1


def test_an_agent_that_was_away_for_long_makes_no_long_wait_of_a_first_refusal() -> None:
    waits = backoff()
    for _ in range(9):
        waits.failed(NotReady("away"), MOMENT)
    assert seconds(waits.failed(NotAuthorized("not registered yet"), MOMENT)) == 1


def test_a_server_that_says_when_to_come_again_is_heard_within_reason() -> None:
    assert backoff().failed(Exhausted("full", retry_after=timedelta(seconds=7)), MOMENT) == timedelta(seconds=7)
    assert seconds(backoff().failed(Exhausted("full", retry_after=timedelta(milliseconds=1)), MOMENT)) == 1
    assert backoff().failed(NotReady("busy", retry_after=timedelta(days=1)), MOMENT) == LONGEST_HINT
