"""However candidates stand still, however slow and lossy the way to the API server: never two leaders, and soon one."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from itertools import count

from hypothesis import given, settings
from hypothesis import strategies as st

from ca.platform.kubernetes.leader.candidate import Candidate, LeaseRecord, LeaseTiming

TIMING = LeaseTiming(timedelta(seconds=15), timedelta(seconds=10), timedelta(seconds=2))
PATIENT = LeaseTiming(timedelta(seconds=40), timedelta(seconds=30), timedelta(seconds=5))  # beside impatient ones
TROUBLE = 300.0  # seconds of faults, then all is well


class World:
    """A lease behind an API server, with candidates as generators that say for how long they wait."""

    def __init__(self, dice: random.Random) -> None:
        self.now = 0.0
        self.record: LeaseRecord | None = None
        self.terms: list[int] = []
        self._dice = dice
        self._versions = count(1)
        self._order = count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []

    def at(self, delay: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + delay, next(self._order), event))

    def run(self, until: float, after_each: Callable[[], None]) -> None:
        while self._events and self._events[0][0] <= until:
            self.now, _, event = heapq.heappop(self._events)
            event()
            after_each()

    def travel(self) -> float:
        """How long a request or an answer is on its way, or a process stands still."""
        if self.now > TROUBLE:
            return self._dice.uniform(0.001, 0.05)
        return self._dice.choice((0.01, 0.1, 0.5, 2.0)) if self._dice.random() < 0.9 else self._dice.uniform(2, 60)

    def is_lost(self) -> bool:
        return self.now < TROUBLE and self._dice.random() < 0.1

    def write(self, wanted: LeaseRecord, base: str) -> bool:
        """What the API server does with a write: only on the version it was made for."""
        if base != (self.record.version if self.record else ""):
            return False
        self.record = replace(wanted, version=str(next(self._versions)))
        return True


def process(world: World, candidate: Candidate, timing: LeaseTiming) -> Iterator[float]:
    """What a process does, standing still wherever it may: it yields for how long."""
    version = ""
    while True:
        if not candidate.leads(world.now):
            yield world.travel()
            found = world.record
            yield world.travel()
            candidate.observe(found, world.now)
            version = found.version if found else ""
            yield world.travel()
        sent = world.now
        wanted = candidate.proposal(sent, f"{sent}")
        if wanted is not None:
            answers: list[tuple[bool, str]] = []

            def arrive(wanted: LeaseRecord = wanted, base: str = version, to: list[tuple[bool, str]] = answers) -> None:
                done = world.write(wanted, base)
                to.append((done, world.record.version if world.record else ""))

            if not world.is_lost():
                world.at(world.travel(), arrive)
            yield world.travel() if world.now < TROUBLE else 0.1  # it may give up before the write arrives
            if answers and not world.is_lost():
                done, known = answers[0]
                if done:
                    did_lead = candidate.leads(world.now)
                    candidate.written(wanted, sent=sent, now=world.now)
                    if candidate.leads(world.now) and not did_lead:
                        world.terms.append(wanted.transitions)
                    version = known
                else:
                    found = world.record
                    yield world.travel()
                    candidate.observe(found, world.now)
                    version = found.version if found else ""
        yield timing.retry_period.total_seconds() + world.travel()


def start(world: World, steps: Iterator[float], alive: Callable[[], bool]) -> None:
    def step() -> None:
        if alive():
            world.at(next(steps), step)

    world.at(0.0, step)


@settings(max_examples=150)
@given(seed=st.integers(0, 1 << 32), number=st.integers(2, 4), crashes=st.lists(st.floats(1, 290), max_size=3))
def test_there_are_never_two_leaders_and_when_the_trouble_is_over_there_is_one(
    seed: int, number: int, crashes: list[float]
) -> None:
    world = World(random.Random(seed))  # noqa: S311  # a die that falls the same way again
    candidates: dict[int, Candidate] = {}

    def begin(index: int) -> None:
        timing = PATIENT if index % 3 == 2 else TIMING
        candidates[index] = Candidate(f"candidate-{index}", timing)
        start(world, process(world, candidates[index], timing), lambda: index in candidates)

    def crash(index: int) -> None:
        leading = [each for each, candidate in candidates.items() if candidate.leads(world.now)]
        del candidates[(leading or list(candidates))[0]]  # in the middle of whatever it did
        begin(index)

    def never_two() -> None:
        leading = [each for each, candidate in candidates.items() if candidate.leads(world.now)]
        assert len(leading) <= 1, f"{leading} lead at {world.now}"

    for index in range(number):
        begin(index)
    for index, when in enumerate(crashes):
        world.at(when, lambda index=index: crash(number + index))  # type: ignore[misc]  # its default is its value
    world.run(TROUBLE + 60 + 60 + 40 + 12, never_two)  # the longest standstill, twice, and the longest lease
    assert any(candidate.leads(world.now) for candidate in candidates.values())
    assert world.terms == sorted(set(world.terms)), "a term has a number that was there before"
