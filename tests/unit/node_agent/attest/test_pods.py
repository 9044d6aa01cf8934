"""Looking pods up: the kubelet is asked seldom, and meanwhile nobody in a pod counts as somebody else."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from istio_auth.errors import NotReady
from node_agent.attest.pod import Place
from node_agent.attest.pod_list import PodList
from node_agent.attest.pods import Pods
from tests.fakes.loop_clock import set_forward
from tests.fakes.pod_lister import CONTAINER, UID, pod
from tests.fakes.waiting import until

HERE = Place(UID, CONTAINER)
LONG = timedelta(seconds=60)
EMPTY, LISTED = PodList(), PodList.of({"kind": "PodList", "items": [pod(containers={CONTAINER: "app"})]})


class Source:
    """A kubelet that answers when it is let, with what is to be said then."""

    def __init__(self, answer: PodList | str = LISTED) -> None:
        self.answer = answer
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.asked = self.asking = self.most = 0

    async def pods(self) -> PodList:
        self.asked += 1
        self.asking += 1
        self.most = max(self.most, self.asking)
        try:
            await self.may_answer.wait()
        finally:
            self.asking -= 1
        if isinstance(self.answer, str):
            raise NotReady(self.answer)
        return self.answer


def pods(source: Source, *, containers: bool = False) -> Pods:
    return Pods(source, wait=LONG, containers=containers)


async def test_what_was_told_a_moment_ago_is_not_asked_for_again() -> None:
    source = Source()
    looking = pods(source)
    for _ in range(10):
        assert "k8s:pod:web-0" in set(map(str, await looking.selectors(HERE)))
    assert source.asked == 1


async def test_however_many_wait_there_is_one_question() -> None:
    source = Source()
    source.may_answer.clear()
    looking = pods(source)
    async with asyncio.TaskGroup() as callers:
        tasks = [callers.create_task(looking.selectors(HERE)) for _ in range(50)]
        await until(lambda: source.asking)
        source.may_answer.set()
    assert all(task.result() for task in tasks)
    assert (source.asked, source.most) == (1, 1)


async def test_a_pod_that_the_kubelet_does_not_tell_of_yet_is_waited_for() -> None:
    source = Source(EMPTY)
    looking = pods(source)
    caller = asyncio.create_task(looking.selectors(HERE))
    await until(lambda: source.asked >= 2)
    assert not caller.done()
    source.answer = LISTED
    assert "k8s:ns:shop" in set(map(str, await caller))
    assert source.most == 1


async def test_a_container_that_the_kubelet_does_not_tell_of_yet_is_waited_for_where_it_counts() -> None:
    source = Source(PodList.of({"kind": "PodList", "items": [pod()]}))
    assert await pods(source).selectors(HERE)
    caller = asyncio.create_task(pods(source, containers=True).selectors(HERE))
    await until(lambda: source.asked >= 3)
    assert not caller.done()
    source.answer = LISTED
    assert "k8s:container:app" in set(map(str, await caller))


async def test_a_kubelet_that_was_away_is_asked_again_while_somebody_waits() -> None:
    source = Source("connection refused")
    looking = pods(source)
    caller = asyncio.create_task(looking.selectors(HERE))
    await until(lambda: looking.trouble == "connection refused")
    source.answer = LISTED
    assert await caller
    assert looking.trouble is None


@pytest.mark.parametrize(
    ("answer", "reason"), [(EMPTY, "does not tell of pod"), ("connection refused", "connection refused")]
)
async def test_who_has_waited_long_enough_hears_not_now_and_why_is_told(answer: PodList | str, reason: str) -> None:
    source = Source(answer)
    asking = asyncio.create_task(pods(source).selectors(HERE))
    await until(lambda: source.asked and not source.asking)
    set_forward(LONG)
    with pytest.raises(NotReady, match=f"{reason}.*; waited for 60 s") as caught:
        await asking
    assert caught.value.public == "the caller's pod is not known yet"
    assert caught.value.retry_after is not None


async def test_a_kubelet_that_never_answers_holds_a_caller_no_longer_than_that() -> None:
    source = Source()
    source.may_answer.clear()
    asking = asyncio.create_task(pods(source).selectors(HERE))
    await until(lambda: source.asking)
    set_forward(LONG)
    with pytest.raises(NotReady, match="has not answered yet; waited for 60 s"):
        await asking
    source.may_answer.set()


async def test_callers_that_come_and_go_ask_nothing_of_the_kubelet() -> None:
    source = Source()
    source.may_answer.clear()
    looking = pods(source)
    patient = asyncio.create_task(looking.selectors(HERE))
    for _ in range(50):
        caller = asyncio.create_task(looking.selectors(Place("nobody", None)))
        await asyncio.sleep(0)
        caller.cancel()
        await asyncio.gather(caller, return_exceptions=True)
    assert source.asked == 1
    source.may_answer.set()
    assert await patient
    begun = asyncio.get_running_loop().time()
    for _ in range(50):
        caller = asyncio.create_task(looking.selectors(Place("nobody", None)))
        await asyncio.sleep(0)
        caller.cancel()
        await asyncio.gather(caller, return_exceptions=True)
    assert source.asked <= 3 + asyncio.get_running_loop().time() - begun  # once a second at most


async def test_a_caller_that_is_first_and_leaves_takes_nothing_from_those_who_wait_with_it() -> None:
    source = Source()
    source.may_answer.clear()
    looking = pods(source)
    first = asyncio.create_task(looking.selectors(HERE))
    await until(lambda: source.asking)
    second = asyncio.create_task(looking.selectors(HERE))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    source.may_answer.set()
    assert await second
    assert source.asked == 1
