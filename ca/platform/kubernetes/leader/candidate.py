"""Candidate: decides when to take a lease, when to renew it and when to stop leading, without I/O.

The clocks of two machines are never compared. A candidate takes a lease that has not changed for the whole of its
duration by the candidate's *own* steady clock. A leader counts from *before* it sent its last renewal, and for a
shorter time (the renew deadline). So a leader has stopped before anybody else can begin, however slow the API server
is. There is one exception: if somebody deletes the Lease, a candidate that never saw it can begin before the leader
notices.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Final

from istio_auth.errors import ConfigurationError

LONGEST_PAUSE = 1.2  # the longest wait between two looks, as a share of the retry period


@dataclass(frozen=True, slots=True)
class LeaseTiming:
    """How patient candidates and leaders are.

    Args:
        duration: for how long others leave an unrenewed lease to its holder; whole seconds.
        renew_deadline: after how long without a renewal a leader stops.
        retry_period: how often a leader renews and a candidate looks.

    Raises:
        ConfigurationError: a leader could not stop in time, or not renew before it must stop.
    """

    duration: timedelta = timedelta(seconds=15)
    renew_deadline: timedelta = timedelta(seconds=10)
    retry_period: timedelta = timedelta(seconds=2)

    def __post_init__(self) -> None:
        if self.duration % timedelta(seconds=1) or self.duration < timedelta(seconds=1):
            raise ConfigurationError("the duration of a lease is a number of whole seconds")
        if not timedelta() < self.retry_period * LONGEST_PAUSE < self.renew_deadline < self.duration:
            raise ConfigurationError(
                f"a lease must last longer than the renew deadline, and that longer than {LONGEST_PAUSE} retry periods"
            )


DEFAULT_TIMING: Final = LeaseTiming()


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """What a Lease says.

    Args:
        holder: the identity of the leader; empty if there is none.
        duration: for how long it is the holder's without a renewal.
        transitions: grows with every term, and so numbers them.
        acquired: when the term began by the holder's clock, for people.
        renewed: when it was renewed last by the holder's clock, for people.
        version: the resource version: it changes with every renewal; empty for one that is yet to be written.
    """

    holder: str
    duration: timedelta
    transitions: int
    acquired: str = ""
    renewed: str = ""
    version: str = ""


class Candidate:
    """What one candidate knows and may do, without I/O.

    Args:
        identity: its name, which no other process has.
        timing: how patient it is.

    Attributes:
        seen: what the lease said last; None if there is none, or nobody looked yet.
    """

    def __init__(self, identity: str, timing: LeaseTiming = DEFAULT_TIMING) -> None:
        self.seen: LeaseRecord | None = None
        self._identity = identity
        self._timing = timing
        self._since = 0.0
        self._term: int | None = None
        self._until = 0.0

    def observe(self, record: LeaseRecord | None, now: float) -> None:
        """Take note of what was read.

        Args:
            record: what the lease says; None if it is certain that there is none.
            now: the steady clock *after* it was read.
        """
        if record is None:  # its holder may not know that it was deleted, so the last record goes on to count
            return
        if record != self.seen:
            self.seen, self._since = record, now
        if record.holder != self._identity or record.transitions != self._term:
            self._term = None

    def proposal(self, now: float, wall: str) -> LeaseRecord | None:
        """What to write: a renewal, or a new term if the lease is free; None if it is another's.

        Args:
            now: the steady clock.
            wall: the time of the day, for people.
        """
        seen = self.seen
        if seen is not None and self.leads(now):
            return replace(seen, duration=self._timing.duration, renewed=wall)
        if seen is not None and seen.holder not in ("", self._identity) and now < self._since + _seconds(seen.duration):
            return None
        transitions = 0 if seen is None else seen.transitions + 1
        return LeaseRecord(self._identity, self._timing.duration, transitions, acquired=wall, renewed=wall)

    def written(self, record: LeaseRecord, *, sent: float, now: float) -> None:
        """Take note that a proposal was accepted. A renewal that is answered too late does not revive its term.

        Args:
            record: the proposal.
            sent: the steady clock before it was sent.
            now: the steady clock after the answer.
        """
        is_late = record.transitions == self._term and not self.leads(now)
        self.seen, self._since = record, sent
        self._term = None if is_late else record.transitions
        self._until = sent + _seconds(self._timing.renew_deadline)

    def leads(self, now: float) -> bool:
        """Whether it is the leader, and nobody else can be."""
        return self._term is not None and now < self._until

    def remaining(self, now: float) -> timedelta:
        """For how long it still leads if it does not renew any more."""
        return timedelta(seconds=max(0.0, self._until - now)) if self._term is not None else timedelta()

    def resign(self) -> LeaseRecord | None:
        """Stop leading.

        Returns:
            what to write so that others need not wait; None if the lease is another's by now.
        """
        self._term = None
        if self.seen is None or self.seen.holder != self._identity:
            return None
        self.seen = replace(self.seen, holder="")
        return self.seen


def _seconds(duration: timedelta) -> float:
    return duration.total_seconds()
