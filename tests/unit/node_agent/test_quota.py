"""What callers may have open and ask for, without callers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from istio_auth.door import UnixCaller
from istio_auth.errors import ConfigurationError, Exhausted
from istio_auth.rpc.method import Call
from node_agent.limits import LimitsSettings, at_the_door_of_pods
from node_agent.quota import Quota


class Process:
    """A process handle of which only the start is asked."""

    def __init__(self, started: int) -> None:
        self.started = started


def call(*, uid: int = 1, pid: int = 10, socket: str = "main", started: int = 5) -> Call:
    process = Process(started)
    return Call(UnixCaller(uid, uid, pid, socket, process), {}, "id", None)  # type: ignore[arg-type]  # see there


class Office:
    """A quota with a clock of the test's."""

    def __init__(self, *, by_pod: bool = False, **limits: int) -> None:
        self.now, self.refusals = 0.0, list[str]()
        self.quota = Quota(
            LimitsSettings(**limits), self.refusals.append, by_pod=by_pod, moment=0, now=lambda: self.now
        )
        self.stack = AsyncExitStack()

    async def open(
        self, count: int = 1, *, uid: int = 1, pid: int = 10, socket: str = "main", started: int = 5
    ) -> Callable[[], None]:
        who = call(uid=uid, pid=pid, socket=socket, started=started)
        return [await self.stack.enter_async_context(self.quota.stream(who)) for _ in range(count)][-1]


@asynccontextmanager
async def office(*, by_pod: bool = False, **limits: int) -> AsyncIterator[Office]:
    found = Office(by_pod=by_pod, **limits)
    async with found.stack:
        yield found
    assert found.quota.document()["streams"] == 0


@pytest.mark.parametrize(
    ("limit", "same", "other"),
    [
        ("streams_per_process", {"pid": 10}, {"pid": 11}),
        ("streams_per_user", {"uid": 1}, {"uid": 2}),
        ("streams_per_socket", {"socket": "main"}, {"socket": "web"}),
    ],
)
async def test_who_is_over_a_limit_is_refused_by_its_name_and_nobody_else(
    limit: str, same: dict[str, Any], other: dict[str, Any]
) -> None:
    async with office(by_pod=False, **{limit: 3}) as at:
        await at.open(3, **same)
        with pytest.raises(Exhausted, match=f"limits.{limit}: 3 are open, and 3 are allowed") as refused:
            await at.open(**same)
        assert limit in refused.value.public
        assert refused.value.retry_after is not None
        assert at.refusals == [limit]
        await at.open(**other)


async def test_a_stream_that_has_ended_makes_room() -> None:
    async with office(streams_per_process=1) as at:
        async with at.quota.stream(call()):
            with pytest.raises(Exhausted):
                await at.open()
        await at.open()


async def test_a_tenth_of_all_streams_is_kept_for_users_that_have_few() -> None:
    async with office(streams=100) as at:
        await at.open(90, uid=1)
        with pytest.raises(Exhausted, match=r"limits\.streams:"):
            await at.open(uid=1)
        await at.open(8, uid=2)
        with pytest.raises(Exhausted, match=r"limits\.streams:"):
            await at.open(uid=2)
        await at.open(2, uid=3)
        with pytest.raises(Exhausted, match="100 are open"):
            await at.open(uid=4)


async def test_a_process_that_asks_too_often_is_refused_until_time_has_passed_and_others_go_on() -> None:
    async with office(request_burst=10, requests_per_second=2) as at:
        spend, other = await at.open(), await at.open(pid=11)
        for _ in range(9):
            spend()
        with pytest.raises(Exhausted, match=r"limits\.requests_per_second"):
            spend()
        with pytest.raises(Exhausted):
            await at.open()
        other()
        at.now += 1
        spend()
        spend()
        with pytest.raises(Exhausted):
            spend()


async def test_a_budget_is_never_more_than_its_burst_however_long_nobody_asked() -> None:
    async with office(request_burst=10, requests_per_second=2) as at:
        spend = await at.open()
        at.now += 1000
        for _ in range(10):
            spend()
        with pytest.raises(Exhausted):
            spend()


async def test_a_user_with_many_processes_has_a_budget_for_all_of_them() -> None:
    async with office(request_burst=1, requests_per_second=1) as at:
        for pid in range(20):
            await at.open(pid=pid)
        with pytest.raises(Exhausted):
            await at.open(pid=21)
        await at.open(pid=22, uid=2)


async def test_what_a_pod_takes_counts_for_that_pod_alone_whatever_its_processes_and_users() -> None:
    async with office(by_pod=True, streams_per_pod=3, request_burst=5, requests_per_second=1) as at:
        spends = [await at.open(socket="one", uid=uid, pid=uid) for uid in range(3)]
        with pytest.raises(Exhausted, match=r"limits\.streams_per_pod: 3 are open, and 3 are allowed"):
            await at.open(socket="one", uid=9, pid=9)
        spends[0]()
        spends[1]()
        with pytest.raises(Exhausted, match=r"limits\.requests_per_second"):
            spends[2]()
        assert at.refusals == ["streams_per_pod", "requests_per_second"]
        other = await at.open(3, socket="two", uid=0, pid=0)
        other()


async def test_a_process_id_that_is_used_again_is_another_process() -> None:
    async with office(streams_per_process=1) as at:
        await at.open(started=5)
        await at.open(started=6)


async def test_callers_that_are_gone_are_forgotten_once_their_budget_is_full_again() -> None:
    async with office(request_burst=10, requests_per_second=1) as at:
        for pid in range(3000):
            at.now += 1
            async with at.quota.stream(call(pid=pid)):
                pass
        assert len(at.quota._accounts) <= 1001


async def test_a_crowd_of_newcomers_does_not_cost_a_sweep_for_each_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    sweeps, sweep = 0, Quota._sweep

    def counted(quota: Quota) -> None:
        nonlocal sweeps
        sweeps += 1
        sweep(quota)

    monkeypatch.setattr(Quota, "_sweep", counted)
    async with office() as at:
        for number in range(8_000):
            async with at.quota.stream(call(uid=number, pid=number)):
                pass
        assert 1 <= sweeps <= 5


async def test_the_busiest_users_are_shown() -> None:
    async with office() as at:
        await at.open(3, uid=7)
        await at.open(1, uid=8)
        assert at.quota.document()["busiest"] == [{"uid": "7", "streams": 3}, {"uid": "8", "streams": 1}]


def test_a_limit_of_nothing_is_a_mistake() -> None:
    with pytest.raises(ConfigurationError, match=r"limits\.streams"):
        LimitsSettings(streams=0)


def test_the_door_takes_on_no_more_than_there_are_descriptors_for() -> None:
    assert LimitsSettings().at_the_door(1 << 20).connections == 10_000
    few = LimitsSettings().at_the_door(1_000)
    assert (few.connections, few.per_caller, few.reserve) == (200, 200, 20)


def test_the_doors_of_an_agent_with_volumes_share_the_descriptors() -> None:
    ours, pods = LimitsSettings().at_the_door(1_000, doors=2), at_the_door_of_pods(1_000)
    assert (ours.connections, pods.connections) == (100, 100)
    assert (pods.per_caller, pods.reserve) == (100, 10)
    assert at_the_door_of_pods(1 << 20).connections == 50_000
