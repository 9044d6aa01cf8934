"""Reflector: what it holds is what the API server holds, whatever happens to its watches."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta
from itertools import pairwise

import pytest
from structlog.testing import capture_logs

from ca.platform.kubernetes.api import reflector
from ca.platform.kubernetes.api.client import KubernetesAPI, Selection
from ca.platform.kubernetes.api.objects import Key, Object, text
from ca.platform.kubernetes.api.reflector import Reflector
from ca.platform.kubernetes.api.resources import SECRETS
from istio_auth.errors import MalformedError
from tests.fakes.api_server import Asked, FakeAPIServer, refusal
from tests.fakes.background import in_background
from tests.fakes.waiting import until

Logs = list[dict[str, object]]


def is_watch(asked: Asked) -> bool:
    return asked.watches


def is_list(asked: Asked) -> bool:
    return asked.lists


class Reader:
    """Reads the `value` of objects; what is damaged it can not."""

    def __init__(self) -> None:
        self.read: list[str] = []

    def __call__(self, item: Object) -> str | None:
        self.read.append(text(item, "metadata", "name"))
        value = item.get("value")
        if value == "damaged":
            raise MalformedError("it is damaged")
        if value == "a surprise":
            raise KeyError(value)
        return str(value) if value else None


class Steady:
    """A steady clock, which goes on by as much as a test says whenever it is looked at."""

    def __init__(self) -> None:
        self.time, self.step = 1000.0, 0.0

    def __call__(self) -> float:
        self.time += self.step
        return self.time


class Watched:
    """A reflector that runs, and what it tells."""

    def __init__(
        self, api: KubernetesAPI, monkeypatch: pytest.MonkeyPatch, *, silence: timedelta, selection: Selection
    ) -> None:
        self.reader = Reader()
        self.clock = Steady()
        self.told: list[str] = []
        self.opened = 0  # watches, as the reflector sees it: a moment after the API server
        monkeypatch.setattr(api, "watch", self._counted(api.watch))
        self.reflector = Reflector(api, SECRETS, self.reader, silence=silence, selection=selection, clock=self.clock)
        self.reflector.on_change(lambda key: self.told.append(key.name))

    @property
    def facts(self) -> dict[str, str]:
        return {key.name: fact for key, fact in self.reflector.facts.items()}

    def fault(self) -> str | None:
        return self.reflector.fault

    def running(self) -> AbstractAsyncContextManager[None]:
        return in_background(self.reflector.run())

    def _counted(self, watch: Callable[..., Watch]) -> Callable[..., Watch]:
        @asynccontextmanager
        async def counted(*arguments: object, **more: object) -> AsyncIterator[AsyncIterator[Object]]:
            async with watch(*arguments, **more) as events:
                self.opened += 1
                yield events

        return counted


Make = Callable[..., Watched]
Watch = AbstractAsyncContextManager[AsyncIterator[Object]]


@pytest.fixture
def make(api: KubernetesAPI, monkeypatch: pytest.MonkeyPatch) -> Make:
    def make(*, silence: timedelta = timedelta(minutes=1), selection: Selection | None = None) -> Watched:
        return Watched(api, monkeypatch, silence=silence, selection=selection or Selection())

    return make


@pytest.fixture
async def watched(make: Make, server: FakeAPIServer) -> AsyncIterator[Watched]:
    """One that holds a and b of now, and watches."""
    server.put(SECRETS, "a", namespace="shop", value="1")
    server.put(SECRETS, "b", namespace="shop", value="1")
    watched = make()
    async with watched.running():
        await until(lambda: watched.opened)
        watched.told.clear()
        yield watched


@pytest.fixture
def logs() -> Iterator[Logs]:
    with capture_logs() as logs:
        yield logs  # type: ignore[misc]  # its values are anything


def gaps(server: FakeAPIServer, where: Callable[[Asked], bool]) -> list[float]:
    """The seconds between requests of this kind."""
    times = [asked.at for asked in server.calls(where)]
    return [later - earlier for earlier, later in pairwise(times)]


class TestList:
    async def test_everything_is_listed_told_and_then_watched(self, make: Make, server: FakeAPIServer) -> None:
        for number in range(5):
            server.put(SECRETS, f"s-{number}", namespace="shop", value="1")
        server.page = 2
        watched = make()
        assert (watched.reflector.synced, watched.reflector.fault) == (False, "nothing was listed yet")
        assert watched.reflector.age() == timedelta.max
        async with watched.running():
            async with asyncio.timeout(20):
                await watched.reflector.until_synced()
            assert watched.facts == dict.fromkeys((f"s-{number}" for number in range(5)), "1")
            assert sorted(watched.told) == sorted(watched.facts)
            await until(lambda: server.open)
            assert (watched.reflector.lists, watched.reflector.fault) == (1, None)
            assert server.calls(is_watch)[0].query["resourceVersion"] == "105"

    async def test_it_is_not_synced_before_the_last_page(self, make: Make, server: FakeAPIServer) -> None:
        for number in range(3):
            server.put(SECRETS, f"s-{number}", namespace="shop", value="1")
        server.page = 2
        go_on = server.hold(lambda asked: "continue" in asked.query)
        watched = make()
        async with watched.running():
            await until(lambda: len(server.asked) == 2)
            assert (watched.reflector.synced, watched.facts, watched.told) == (False, {}, [])
            go_on.set()
            await until(lambda: watched.reflector.synced)
            assert len(watched.facts) == 3

    async def test_a_list_that_expires_in_the_middle_is_begun_anew(self, make: Make, server: FakeAPIServer) -> None:
        for number in range(3):
            server.put(SECRETS, f"s-{number}", namespace="shop", value="1")
        server.page = 2
        expired = server.answer(410, where=lambda asked: "continue" in asked.query)
        watched = make()
        async with watched.running():
            await until(lambda: watched.reflector.synced)
            assert expired.met
            assert (watched.reflector.lists, len(watched.facts)) == (1, 3)

    async def test_a_selection_is_listed_and_watched(self, make: Make, server: FakeAPIServer) -> None:
        server.put(SECRETS, "a", namespace="shop", value="1")
        server.put(SECRETS, "a", namespace="bank", value="1")
        watched = make(selection=Selection("shop", "metadata.name=a"))
        async with watched.running():
            await until(lambda: server.open)
            server.put(SECRETS, "b", namespace="shop", value="1")
            server.put(SECRETS, "a", namespace="shop", value="2")
            await until(lambda: watched.facts == {"a": "2"})
            assert watched.told == ["a", "a"]

    async def test_while_it_can_not_be_listed_nothing_is_told_and_the_reason_is_known(
        self, make: Make, server: FakeAPIServer, logs: Logs
    ) -> None:
        refused = server.answer(403, refusal(403, "secrets is forbidden"), where=is_list, times=3)
        watched = make()
        async with watched.running():
            await until(lambda: watched.reflector.fault and "forbidden" in watched.reflector.fault)
            assert not watched.reflector.synced
            await until(lambda: watched.reflector.synced)
            assert len(refused.met) == 3
            assert watched.reflector.fault is None
        assert [log["event"] for log in logs] == ["not watching", "watching"]  # once, however often it is tried


class TestWatch:
    async def test_what_comes_changes_and_goes_is_told(self, watched: Watched, server: FakeAPIServer) -> None:
        server.put(SECRETS, "c", namespace="shop", value="1")
        await until(lambda: watched.facts == {"a": "1", "b": "1", "c": "1"})
        server.put(SECRETS, "a", namespace="shop", value="2")
        await until(lambda: watched.facts == {"a": "2", "b": "1", "c": "1"})
        server.remove(SECRETS, "b", namespace="shop")
        await until(lambda: watched.facts == {"a": "2", "c": "1"})
        assert watched.told == ["c", "a", "b"]
        assert watched.reflector.get("a", namespace="shop") == "2"
        assert watched.reflector.get("a") is None

    async def test_who_is_told_sees_the_new_state_already(self, watched: Watched, server: FakeAPIServer) -> None:
        seen: list[str | None] = []
        watched.reflector.on_change(lambda key: seen.append(watched.reflector.facts.get(key)))
        server.put(SECRETS, "a", namespace="shop", value="2")
        server.remove(SECRETS, "a", namespace="shop")
        await until(lambda: len(seen) == 2)
        assert seen == ["2", None]

    async def test_the_facts_can_not_be_changed_from_outside(self, watched: Watched) -> None:
        with pytest.raises(TypeError):
            watched.reflector.facts[Key("shop", "a")] = "forged"  # type: ignore[index]  # that is the point

    @pytest.mark.parametrize("how", ["cut", "cut in the middle of a line", "ended"])
    async def test_one_that_breaks_goes_on_from_the_last_version_without_a_list(
        self, watched: Watched, server: FakeAPIServer, how: str
    ) -> None:
        server.put(SECRETS, "a", namespace="shop", value="2")
        await until(lambda: watched.facts["a"] == "2")
        go_on = server.hold(is_watch)
        if how == "ended":
            server.end()
        else:
            if "line" in how:
                server.say(b'{"type": "MODIFIED", "obj')
                await until(lambda: server.calm)
            server.cut()
        await until(lambda: not server.open)
        server.put(SECRETS, "a", namespace="shop", value="3")  # while nobody looks
        server.remove(SECRETS, "b", namespace="shop")
        go_on.set()
        await until(lambda: watched.facts == {"a": "3"})
        assert watched.told == ["a", "a", "b"]
        assert (watched.reflector.lists, watched.reflector.fault) == (1, None)
        assert [asked.query["resourceVersion"] for asked in server.calls(is_watch)] == ["102", "103"]

    async def test_it_goes_on_from_the_last_bookmark(self, watched: Watched, server: FakeAPIServer) -> None:
        server.bookmark()
        server.end()
        await until(lambda: len(server.calls(is_watch)) == 2)
        assert server.calls(is_watch)[1].query["resourceVersion"] == "103"
        assert watched.told == []

    @pytest.mark.parametrize("as_event", [True, False])
    async def test_after_it_has_expired_what_changed_meanwhile_is_told_once(
        self, watched: Watched, server: FakeAPIServer, *, as_event: bool
    ) -> None:
        server.expires_as_event = as_event
        go_on = server.hold(lambda _: True)
        server.put(SECRETS, "still", namespace="shop", value="1")
        await until(lambda: "still" in watched.facts)
        watched.told.clear()
        watched.reader.read.clear()
        server.cut()
        await until(lambda: not server.open)
        server.put(SECRETS, "a", namespace="shop", value="2")
        server.put(SECRETS, "a", namespace="shop", value="3")
        server.remove(SECRETS, "b", namespace="shop")
        server.put(SECRETS, "c", namespace="shop", value="1")
        server.put(SECRETS, "d", namespace="shop", value="1")
        server.remove(SECRETS, "d", namespace="shop")
        server.expire()
        go_on.set()
        await until(lambda: watched.reflector.lists == 2)
        assert watched.facts == {"still": "1", "a": "3", "c": "1"}
        assert sorted(watched.told) == ["a", "b", "c"]
        assert sorted(watched.reader.read) == ["a", "c"]  # what is as it was is not read again

    async def test_a_state_is_replaced_in_one_step(self, watched: Watched, server: FakeAPIServer) -> None:
        """Whoever looks while it is listed anew sees the old state whole, and not half of the new one."""
        server.put(SECRETS, "c", namespace="shop", value="1")
        await until(lambda: "c" in watched.facts)
        server.page = 1
        go_on = server.hold(lambda asked: "continue" in asked.query)
        server.expire()
        await until(lambda: any("continue" in asked.query for asked in server.asked))
        assert watched.facts == {"a": "1", "b": "1", "c": "1"}
        go_on.set()
        await until(lambda: watched.reflector.lists == 2)
        assert watched.facts == {"a": "1", "b": "1", "c": "1"}

    async def test_a_new_object_under_an_old_name_is_told(self, watched: Watched, server: FakeAPIServer) -> None:
        server.remove(SECRETS, "a", namespace="shop")
        server.put(SECRETS, "a", namespace="shop", value="2")
        await until(lambda: watched.facts["a"] == "2" if "a" in watched.facts else False)
        assert watched.told == ["a", "a"]

    async def test_an_answer_that_is_no_list_takes_nothing_away(self, watched: Watched, server: FakeAPIServer) -> None:
        strange = server.answer(200, {"kind": "Healthy"}, where=is_list)
        server.expire()
        await until(lambda: strange.met)
        await until(lambda: watched.reflector.lists == 2)
        assert watched.told == []


class TestTrouble:
    async def test_one_that_is_silent_is_opened_again_and_counts_for_nothing_before_a_word(
        self, make: Make, server: FakeAPIServer
    ) -> None:
        server.put(SECRETS, "a", namespace="shop", value="1")
        watched = make(silence=timedelta(seconds=0.2))
        server.mute = True
        async with watched.running():
            await until(lambda: watched.opened)
            heard = watched.reflector.heard
            watched.clock.time += 100
            await until(lambda: watched.opened == 3)
            assert watched.reflector.heard == heard
            assert watched.reflector.age() == timedelta(seconds=100)
            assert watched.fault() == "nothing was heard for 0.2 seconds"
            server.mute = False
            server.put(SECRETS, "a", namespace="shop", value="2")
            await until(lambda: watched.facts["a"] == "2")
            assert watched.reflector.age() == timedelta()
            assert watched.fault() is None
            assert watched.reflector.lists == 1

    async def test_bookmarks_are_words_enough(self, make: Make, server: FakeAPIServer) -> None:
        watched = make()
        async with watched.running():
            await until(lambda: watched.opened)
            watched.clock.time += 100
            server.bookmark()
            await until(lambda: not watched.reflector.age())
            assert len(server.calls(is_watch)) == 1

    async def test_watches_that_end_at_once_come_ever_later(self, make: Make, server: FakeAPIServer) -> None:
        server.answer(200, b"", where=is_watch, times=4)
        async with make().running():
            await until(lambda: server.open)
        first, second, third, fourth = gaps(server, is_watch)
        assert first >= 0.1
        assert second >= 0.2
        assert third >= 0.4
        assert fourth >= 0.8
        assert len(server.calls(is_list)) == 1

    @pytest.mark.parametrize("status", [410, 500])
    async def test_what_fails_again_and_again_comes_ever_later_even_if_each_time_takes_long(
        self, make: Make, server: FakeAPIServer, status: int
    ) -> None:
        server.answer(status, where=is_watch, times=3)
        watched = make()
        watched.clock.step = 10
        async with watched.running():
            await until(lambda: server.open)
        first, second, third = gaps(server, is_watch)
        assert first >= 0.1
        assert second >= 0.2
        assert third >= 0.4

    async def test_lists_that_fail_slowly_come_ever_later(self, make: Make, server: FakeAPIServer) -> None:
        server.answer(504, where=is_list, times=3)
        watched = make()
        watched.clock.step = 10
        async with watched.running():
            await until(lambda: server.open)
        assert sum(gaps(server, is_list)) >= 0.7

    async def test_a_word_makes_patience_new(
        self, make: Make, server: FakeAPIServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        attempts: list[int] = []

        def noted(attempt: int, **_: object) -> timedelta:
            attempts.append(attempt)
            return timedelta(milliseconds=1)

        monkeypatch.setattr(reflector, "retry_delay", noted)
        server.answer(200, b"", where=is_watch, times=4)
        watched = make()
        async with watched.running():
            await until(lambda: server.open)
            server.bookmark()
            server.end()
            await until(lambda: len(server.calls(is_watch)) == 6)
        assert attempts == [1, 2, 3, 4, 1]

    async def test_it_comes_no_earlier_than_the_api_server_says(self, watched: Watched, server: FakeAPIServer) -> None:
        busy = server.answer(429, where=is_watch, headers={"Retry-After": "1"})
        server.end()
        await until(lambda: server.open and busy.met)
        assert gaps(server, is_watch)[-1] >= 1
        assert watched.reflector.lists == 1

    async def test_how_long_nothing_was_heard_is_known(self, watched: Watched, server: FakeAPIServer) -> None:
        assert watched.reflector.age() == timedelta()
        server.answer(503, times=2)
        server.cut()
        watched.clock.time += 60
        await until(lambda: watched.reflector.fault)
        assert watched.reflector.age() == timedelta(seconds=60)
        await until(lambda: not watched.reflector.fault)
        assert watched.reflector.age() == timedelta()


class TestDamage:
    @pytest.mark.parametrize("value", ["damaged", "a surprise"])
    async def test_an_object_that_can_not_be_read_is_left_out_and_the_others_stay(
        self, make: Make, server: FakeAPIServer, logs: Logs, value: str
    ) -> None:
        server.put(SECRETS, "bad", namespace="shop", value=value)
        server.put(SECRETS, "good", namespace="shop", value="1")
        watched = make()
        async with watched.running():
            await until(lambda: server.open)
            assert watched.facts == {"good": "1"}
            server.put(SECRETS, "good", namespace="shop", value=value)
            server.put(SECRETS, "late", namespace="shop", value="1")
            await until(lambda: watched.facts == {"late": "1"})
            server.put(SECRETS, "bad", namespace="shop", value="2")
            server.put(SECRETS, "good", namespace="shop", value="2")
            await until(lambda: watched.facts == {"bad": "2", "good": "2", "late": "1"})
        left_out = [log["object"] for log in logs if log["event"] == "an object is left out"]
        assert left_out == ["shop/bad", "shop/good"]

    async def test_it_is_reported_once_for_each_of_its_versions(
        self, make: Make, server: FakeAPIServer, logs: Logs
    ) -> None:
        server.put(SECRETS, "bad", namespace="shop", value="damaged")
        watched = make()
        async with watched.running():
            await until(lambda: server.open)
            server.expire()
            await until(lambda: watched.reflector.lists == 2 and server.open)
        assert [log["reason"] for log in logs if log["event"] == "an object is left out"] == ["it is damaged"]

    async def test_what_is_not_wanted_is_told_but_not_kept(self, watched: Watched, server: FakeAPIServer) -> None:
        server.put(SECRETS, "a", namespace="shop", value="")
        await until(lambda: watched.told)
        assert watched.facts == {"b": "1"}

    @pytest.mark.parametrize(
        "event", [{"type": "ADDED"}, {"type": "ADDED", "object": "x"}, {"object": {}}, [], "x", {"type": "NEW"}]
    )
    async def test_an_event_without_sense_ends_nothing(
        self, watched: Watched, server: FakeAPIServer, event: object
    ) -> None:
        server.say(json.dumps(event).encode() + b"\n")
        server.put(SECRETS, "c", namespace="shop", value="1")
        await until(lambda: "c" in watched.facts)
        assert {"a": "1", "b": "1", "c": "1"}.items() <= watched.facts.items()


class TestAgain:
    async def test_a_second_run_is_synced_by_its_own_list_and_tells_what_changed_between(
        self, make: Make, server: FakeAPIServer
    ) -> None:
        server.put(SECRETS, "a", namespace="shop", value="1")
        server.put(SECRETS, "b", namespace="shop", value="1")
        watched = make()
        async with watched.running():
            await until(lambda: server.open)
        await until(lambda: not server.open)
        assert not watched.reflector.synced  # or who begins at the same time would act on what was once
        server.remove(SECRETS, "a", namespace="shop")
        watched.told.clear()
        go_on = server.hold(is_list)
        async with watched.running():
            await until(lambda: len(server.calls(is_list)) == 2)
            assert not watched.reflector.synced
            go_on.set()
            await until(lambda: watched.reflector.synced)
            assert (watched.facts, watched.told) == ({"b": "1"}, ["a"])


async def test_others_have_their_turn_while_a_long_list_is_decoded(make: Make, server: FakeAPIServer) -> None:
    for number in range(200):
        server.put(SECRETS, f"web-{number}", namespace="shop", value="1")
    watched, longest = make(), 0
    async with watched.running():
        while (before := len(watched.reader.read)) < 200:
            await asyncio.sleep(0)  # a turn of ours
            longest = max(longest, len(watched.reader.read) - before)
    assert 0 < longest < 50
