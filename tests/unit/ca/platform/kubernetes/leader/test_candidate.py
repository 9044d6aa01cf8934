"""When a candidate takes a lease and when a leader stops, by its own steady clock."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from ca.platform.kubernetes.leader.candidate import Candidate, LeaseRecord, LeaseTiming
from istio_auth.errors import ConfigurationError

THEIRS = LeaseRecord("other", timedelta(seconds=15), 4, renewed="12:00:00", version="7")
WALL = "2030-01-01T12:00:00.000000Z"


def leader(candidate: Candidate, at: float) -> LeaseRecord:
    """Have a candidate win at an instant; what it wrote."""
    wanted = candidate.proposal(at, WALL)
    assert wanted is not None
    candidate.written(wanted, sent=at, now=at)
    assert candidate.leads(at)
    return wanted


@pytest.mark.parametrize(
    ("duration", "renew_deadline", "retry_period"),
    [(15, 15, 2), (15, 2.4, 2), (15, 10, 0), (0.5, 0.4, 0.1), (2.5, 2, 1)],
)
def test_a_timing_by_which_a_leader_could_not_stop_or_not_renew_in_time_is_refused(
    duration: float, renew_deadline: float, retry_period: float
) -> None:
    with pytest.raises(ConfigurationError):
        LeaseTiming(*(timedelta(seconds=seconds) for seconds in (duration, renew_deadline, retry_period)))


def test_a_lease_of_another_is_free_when_it_did_not_change_for_its_duration_since_it_was_seen() -> None:
    candidate = Candidate("me")
    candidate.observe(THEIRS, 100.0)
    candidate.observe(THEIRS, 110.0)
    assert candidate.proposal(114.9, WALL) is None
    assert candidate.proposal(115.0, WALL) == LeaseRecord("me", timedelta(seconds=15), 5, acquired=WALL, renewed=WALL)


def test_a_renewal_is_seen_by_its_version_even_if_the_clock_of_its_holder_stands_still() -> None:
    candidate = Candidate("me")
    candidate.observe(THEIRS, 100.0)
    candidate.observe(replace(THEIRS, version="8"), 114.0)
    assert candidate.proposal(120.0, WALL) is None


def test_the_duration_that_its_holder_wrote_counts() -> None:
    candidate = Candidate("me")
    candidate.observe(replace(THEIRS, duration=timedelta(seconds=60)), 100.0)
    assert candidate.proposal(159.0, WALL) is None


def test_a_released_lease_is_taken_at_once_and_its_terms_go_on() -> None:
    candidate = Candidate("me")
    candidate.observe(replace(THEIRS, holder=""), 100.0)
    assert leader(candidate, 100.0).transitions == 5


def test_a_leader_stops_by_its_own_clock_counted_from_before_its_renewal_was_sent() -> None:
    candidate = Candidate("me")
    leader(candidate, 100.0)
    renewal = candidate.proposal(104.0, WALL)
    assert renewal is not None
    assert renewal.transitions == 0
    candidate.written(renewal, sent=104.0, now=109.0)
    assert candidate.leads(113.9)
    assert candidate.remaining(113.0) == timedelta(seconds=1)
    assert not candidate.leads(114.0)


def test_a_term_that_is_over_does_not_come_back_by_a_renewal_whose_answer_was_late() -> None:
    candidate = Candidate("me")
    leader(candidate, 100.0)
    renewal = candidate.proposal(109.0, WALL)
    assert renewal is not None
    candidate.written(renewal, sent=109.0, now=111.0)
    assert not candidate.leads(111.0)
    assert leader(candidate, 111.0).transitions == 1


def test_a_leader_that_reads_of_another_leads_no_more() -> None:
    candidate = Candidate("me")
    leader(candidate, 100.0)
    candidate.observe(THEIRS, 101.0)  # by the hand of a person: nobody else would have taken it
    assert not candidate.leads(101.0)
    assert candidate.proposal(101.0, WALL) is None


def test_a_deleted_lease_is_not_taken_from_a_leader_that_may_not_know_of_it_yet() -> None:
    candidate = Candidate("me")
    candidate.observe(THEIRS, 100.0)
    candidate.observe(None, 105.0)
    assert candidate.proposal(114.0, WALL) is None
    assert leader(candidate, 115.0).transitions == 5


def test_whoever_resigns_writes_an_empty_holder_and_leads_no_more() -> None:
    candidate = Candidate("me")
    won = leader(candidate, 100.0)
    assert candidate.resign() == replace(won, holder="")
    assert not candidate.leads(100.0)


def test_whoever_does_not_hold_a_lease_has_nothing_to_resign_from() -> None:
    candidate = Candidate("me")
    candidate.observe(THEIRS, 100.0)
    assert candidate.resign() is None
