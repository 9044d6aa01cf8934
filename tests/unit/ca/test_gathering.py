"""Work on threads: few trips, every caller its own answer, and nothing lost when one hangs up."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence

import pytest

from ca.gathering import MAX_TOGETHER, MAX_WAITING, Gathering
from istio_auth.errors import Exhausted, NotReady


class Work:
    """Doubles numbers; waits for its gate first, and fails on request."""

    def __init__(self) -> None:
        self.trips: list[list[int]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.error: Exception | None = None
        self.entered = threading.Semaphore(0)

    def __call__(self, items: Sequence[int]) -> list[int]:
        self.trips.append(list(items))
        self.entered.release()
        assert self.gate.wait(30)
        if self.error:
            raise self.error
        return [2 * item for item in items]


@pytest.fixture
def work() -> Work:
    return Work()


@pytest.fixture
async def gathering(work: Work) -> AsyncIterator[Gathering[int, int]]:
    gathering = Gathering(work, threads=1, name="test")
    yield gathering
    work.gate.set()
    await gathering.close()


async def entered(work: Work) -> None:
    assert await asyncio.to_thread(work.entered.acquire, timeout=30)


async def test_a_batch_makes_one_trip_and_comes_back_in_its_order(work: Work, gathering: Gathering[int, int]) -> None:
    assert list(await gathering.submit(range(500))) == [2 * number for number in range(500)]
    assert len(work.trips) == 1


async def test_callers_of_one_moment_share_a_trip_and_get_their_own_answers(
    work: Work, gathering: Gathering[int, int]
) -> None:
    answers = await asyncio.gather(*(gathering.submit([number]) for number in range(20)))
    assert [list(answer) for answer in answers] == [[2 * number] for number in range(20)]
    assert len(work.trips) == 1


async def test_those_who_come_while_the_threads_are_busy_share_the_next_trip(
    work: Work, gathering: Gathering[int, int]
) -> None:
    work.gate.clear()
    first = asyncio.create_task(gathering.submit([0]))
    await entered(work)
    others = [asyncio.create_task(gathering.submit([number])) for number in range(1, 10)]
    await asyncio.sleep(0)
    work.gate.set()
    await asyncio.gather(first, *others)
    assert work.trips == [[0], list(range(1, 10))]


async def test_a_trip_is_bounded_and_a_batch_is_never_torn(work: Work, gathering: Gathering[int, int]) -> None:
    size = MAX_TOGETHER // 2 + 1
    await asyncio.gather(*(gathering.submit(range(size)) for _ in range(3)))
    assert [len(trip) for trip in work.trips] == [size, size, size]


async def test_a_caller_who_hangs_up_loses_its_answer_and_not_its_work(
    work: Work, gathering: Gathering[int, int]
) -> None:
    work.gate.clear()
    gone, stays = asyncio.create_task(gathering.submit([1])), asyncio.create_task(gathering.submit([2]))
    await entered(work)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    work.gate.set()
    assert list(await stays) == [4]
    assert work.trips == [[1, 2]]


async def test_for_a_caller_who_hangs_up_early_nothing_is_done(work: Work, gathering: Gathering[int, int]) -> None:
    work.gate.clear()
    first = asyncio.create_task(gathering.submit([0]))
    await entered(work)
    gone, stays = asyncio.create_task(gathering.submit([1])), asyncio.create_task(gathering.submit([2]))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.sleep(0)
    work.gate.set()
    await asyncio.gather(first, stays)
    assert work.trips == [[0], [2]]


async def test_a_failure_reaches_everybody_on_the_trip_and_nobody_after(
    work: Work, gathering: Gathering[int, int]
) -> None:
    work.error = RuntimeError("broken")
    results = await asyncio.gather(gathering.submit([1]), gathering.submit([2]), return_exceptions=True)
    assert [type(result) for result in results] == [RuntimeError, RuntimeError]
    work.error = None
    assert list(await gathering.submit([3])) == [6]


async def test_too_many_waiting_are_told_to_come_back(work: Work, gathering: Gathering[int, int]) -> None:
    work.gate.clear()
    first = asyncio.create_task(gathering.submit([0]))
    await entered(work)
    waiting = asyncio.create_task(gathering.submit(range(MAX_WAITING)))
    await asyncio.sleep(0)
    with pytest.raises(Exhausted) as caught:
        await gathering.submit([1])
    assert caught.value.retry_after is not None
    work.gate.set()
    await asyncio.gather(first, waiting)
    assert list(await gathering.submit([1])) == [2]


async def test_closing_finishes_what_waits_and_takes_no_more(work: Work) -> None:
    gathering = Gathering(work, threads=1, name="test")
    work.gate.clear()
    tasks = [asyncio.create_task(gathering.submit([0]))]
    await entered(work)
    tasks.append(asyncio.create_task(gathering.submit([1])))
    await asyncio.sleep(0)
    closing = asyncio.create_task(gathering.close())
    await asyncio.sleep(0)
    with pytest.raises(NotReady):
        await gathering.submit([2])
    work.gate.set()
    await closing
    assert [list(await task) for task in tasks] == [[0], [2]]


async def test_something_done_aside_is_done_once_at_a_time(gathering: Gathering[int, int]) -> None:
    gate, done = threading.Event(), threading.Semaphore(0)
    calls: list[int] = []

    def aside() -> None:
        calls.append(1)
        assert gate.wait(30)
        done.release()

    gathering.aside(aside)
    gathering.aside(aside)
    gate.set()
    assert await asyncio.to_thread(done.acquire, timeout=30)
    assert calls == [1]
