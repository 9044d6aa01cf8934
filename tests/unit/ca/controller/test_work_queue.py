"""The queue of keys: each once, none in two hands, urgent ones first; those that are due later; and failures."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from ca.controller.work_queue import Agenda, Attempts, WorkQueue
from tests.fakes.waiting import until

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


async def taken(queue: WorkQueue[str]) -> list[str]:
    """Everything that waits, in its order; all of it stays in hand."""
    return [await queue.take() for _ in range(len(queue))]


async def test_a_key_that_is_added_often_waits_once() -> None:
    queue = WorkQueue[str]()
    for key in ("a", "b", "a", "a"):
        queue.add(key)
    assert await taken(queue) == ["a", "b"]


async def test_what_is_urgent_overtakes_what_is_not_also_when_it_waited_already() -> None:
    queue = WorkQueue[str]()
    for key in ("a", "b", "c"):
        queue.add(key, urgent=False)
    queue.add("d")
    queue.add("b")
    queue.add("b", urgent=False)  # takes nothing back
    assert await taken(queue) == ["d", "b", "a", "c"]


async def test_a_key_in_somebodys_hands_is_given_to_nobody_else_and_comes_again_afterwards() -> None:
    queue = WorkQueue[str]()
    queue.add("a")
    assert await queue.take() == "a"
    queue.add("a")
    queue.add("a", urgent=False)
    second = asyncio.create_task(queue.take())
    await asyncio.sleep(0)
    assert not second.done()
    assert len(queue) == 1
    queue.done("a")
    assert await second == "a"
    queue.done("a")
    assert queue.idle
    assert len(queue) == 0


async def test_one_who_waits_is_woken_by_each_key() -> None:
    queue = WorkQueue[str]()
    waiting = [asyncio.create_task(queue.take()) for _ in range(3)]
    await asyncio.sleep(0)
    queue.add("a")
    queue.add("b", urgent=False)
    await until(lambda: sum(task.done() for task in waiting) == 2)
    assert {task.result() for task in waiting if task.done()} == {"a", "b"}
    (last,) = [task for task in waiting if not task.done()]
    last.cancel()
    queue.done("a")
    queue.add("c")
    assert await queue.take() == "c"  # one who went away took nothing along


async def test_a_key_that_was_promoted_is_not_handed_out_a_second_time_from_its_old_place() -> None:
    queue = WorkQueue[str]()
    queue.add("a", urgent=False)
    queue.add("a")
    assert await queue.take() == "a"
    queue.add("b", urgent=False)
    assert await queue.take() == "b"
    assert len(queue) == 0


def test_keys_are_due_in_the_order_of_their_instants_and_each_once() -> None:
    agenda = Agenda[str]()
    agenda.put("late", NOON + 2 * MINUTE)
    agenda.put("early", NOON + MINUTE)
    assert agenda.next() == NOON + MINUTE
    assert agenda.take(NOON) == []
    assert agenda.take(NOON + MINUTE) == ["early"]
    assert agenda.take(NOON + 3 * MINUTE) == ["late"]
    assert agenda.take(NOON + 3 * MINUTE) == []
    assert agenda.next() is None


def test_a_key_that_is_moved_or_dropped_is_not_due_when_it_was() -> None:
    agenda = Agenda[str]()
    agenda.put("moved", NOON)
    agenda.put("moved", NOON + MINUTE)
    agenda.put("dropped", NOON)
    agenda.drop("dropped")
    agenda.put("back", NOON + MINUTE)
    agenda.put("back", NOON)
    assert agenda.take(NOON) == ["back"]
    assert agenda.take(NOON + MINUTE) == ["moved"]
    assert len(agenda) == 0


@pytest.mark.parametrize("keys", [1, 50])
def test_keys_that_are_moved_again_and_again_leave_nothing_behind(keys: int) -> None:
    agenda = Agenda[int]()
    for number in range(5000):
        agenda.put(number % keys, NOON + number * MINUTE)
    assert len(agenda._heap) <= 2 * keys + 101
    assert sorted(agenda.take(NOON + 5000 * MINUTE)) == list(range(keys))


def test_a_key_waits_twice_as_long_after_each_failure_up_to_the_longest_and_as_long_as_it_is_asked_to() -> None:
    attempts = Attempts[str](MINUTE, 5 * MINUTE)
    waits = [attempts.failed("a") for _ in range(5)]
    for wait, bound in zip(waits, (1, 2, 4, 5, 5), strict=True):
        assert bound * MINUTE / 2 <= wait <= bound * MINUTE
    assert attempts.failed("a", at_least=9 * MINUTE) == 9 * MINUTE
    assert (attempts.count("a"), attempts.count("b")) == (6, 0)


def test_a_key_that_has_succeeded_begins_anew() -> None:
    attempts = Attempts[str](MINUTE, 5 * MINUTE)
    for _ in range(4):
        attempts.failed("a")
    attempts.forget("a")
    assert attempts.failed("a") <= MINUTE
    assert attempts.count("a") == 1
