"""What every source does alike: it is waited for, followed, asked how it is, and speaks of an SVID that ends."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import weakref
from collections.abc import Callable
from datetime import timedelta

import pytest

from istio_auth.bundle import BundleSet
from istio_auth.errors import IstioAuthError, MissingError, NotAuthorized, NotReady
from istio_auth.sources.source import Source
from istio_auth.svid import X509SVID
from istio_auth.x509_source import X509Context
from tests.fakes.authority import HOUR, FakeAuthority
from tests.fakes.clock import FakeClock
from tests.fakes.waiting import until

NOTHING, PATIENCE = timedelta(), timedelta(seconds=60)
REFUSED = NotAuthorized("no identity is registered for this process")


class OpenSource(Source):
    """A source whose inside a test reaches."""

    hold, offer, lose, trouble = Source._hold, Source._offer, Source._lose, Source._trouble


@pytest.fixture
def clock(authority: FakeAuthority) -> FakeClock:
    return FakeClock(authority.now)


@pytest.fixture
def source(clock: FakeClock) -> OpenSource:
    return OpenSource("the test", "mend the test", clock=clock)


def lasting(authority: FakeAuthority, lifetime: timedelta = 10 * HOUR, path: str = "/web") -> X509SVID:
    return authority.svid(path, not_before=authority.now, not_after=authority.now + lifetime)


def context(authority: FakeAuthority, *svids: X509SVID) -> X509Context:
    return X509Context(svids or (lasting(authority),), BundleSet((authority.bundle(),)))


def hinted(svid: X509SVID, hint: str) -> X509SVID:
    return X509SVID(svid.id, svid.chain, svid.private_key, hint)


def why(ask: Callable[[], object]) -> str:
    with pytest.raises(IstioAuthError) as caught:
        ask()
    return str(caught.value)


class TestWhatIsServed:
    def test_nothing_before_something_arrived_and_the_trouble_is_told_with_what_to_do(self, source: OpenSource) -> None:
        source.trouble(OSError("the disk is gone"))
        with pytest.raises(NotReady) as refusal:
            source.x509_context()
        assert str(refusal.value) == "no SVID has arrived yet from the test (the disk is gone); mend the test"

    def test_the_last_good_snapshot_through_any_trouble(self, source: OpenSource, authority: FakeAuthority) -> None:
        source.hold(held := context(authority))
        source.trouble(OSError("the disk is gone"))
        assert source.x509_context() is held
        assert source.status().trouble == "the disk is gone"

    def test_the_last_good_svid_until_its_end_and_then_a_clear_refusal(
        self, source: OpenSource, authority: FakeAuthority, clock: FakeClock
    ) -> None:
        source.hold(held := context(authority, lasting(authority, HOUR)))
        source.trouble(OSError("nobody answers"))
        clock.advance(HOUR - timedelta(microseconds=1))
        assert source.x509_context() is held
        clock.advance(timedelta(microseconds=1))
        with pytest.raises(NotReady) as refusal:
            source.x509_context()
        for word in (held.svid.id, held.svid.not_after.isoformat(), "nobody answers", "mend the test"):
            assert str(word) in str(refusal.value)
        source.hold(fresh := context(authority))
        assert source.x509_context() is fresh

    def test_nothing_after_it_was_lost_and_the_reason_is_raised_anew_each_time(
        self, source: OpenSource, authority: FakeAuthority
    ) -> None:
        source.hold(context(authority))
        source.lose(REFUSED)
        caught = []
        for _ in range(3):
            with pytest.raises(NotAuthorized, match="no identity is registered") as refusal:
                source.x509_context()
            caught.append(refusal.value)
        assert {len(_frames(refusal)) for refusal in caught} == {2}
        assert len(set(map(id, caught))) == 3
        source.hold(again := context(authority))
        assert source.x509_context() is again

    def test_nothing_after_it_was_closed_and_that_is_for_good(
        self, source: OpenSource, authority: FakeAuthority
    ) -> None:
        with source:
            source.hold(context(authority))
        source.hold(context(authority))
        assert "closed" in why(source.x509_context)
        assert source.status().ready is False
        source.close()

    async def test_an_asynchronous_block_closes_it_too(self, source: OpenSource, authority: FakeAuthority) -> None:
        async with source:
            source.hold(context(authority))
        assert "closed" in why(source.x509_context)

    def test_the_same_content_again_is_no_change(self, source: OpenSource, authority: FakeAuthority) -> None:
        svid, told = lasting(authority), list[str]()
        source.hold(held := context(authority, svid))
        source.subscribe(lambda: told.append("changed"))
        source.trouble(OSError("gone"))
        source.offer(context(authority, svid))
        assert source.x509_context() is held
        assert (source.status().updates, source.status().trouble, told) == (1, None, [])
        source.offer(X509Context((svid,), BundleSet()))
        assert source.x509_context() is not held
        assert (source.status().updates, told) == (2, ["changed"])


class TestAnSVID:
    def test_is_the_first_one_or_the_first_with_the_hint(self, source: OpenSource, authority: FakeAuthority) -> None:
        first, second, third = (hinted(lasting(authority), hint) for hint in ("", "internal", "internal"))
        source.hold(context(authority, first, second, third))
        assert source.svid() is first
        assert source.svid("internal") is second
        with pytest.raises(MissingError, match="'internal'"):
            source.svid("external")

    def test_that_was_picked_by_its_hint_is_refused_after_its_end(
        self, source: OpenSource, authority: FakeAuthority, clock: FakeClock
    ) -> None:
        source.hold(context(authority, lasting(authority), hinted(lasting(authority, HOUR, "/short"), "short")))
        assert source.svid("short")
        clock.advance(HOUR)
        with pytest.raises(NotReady, match="/short from the test has ended"):
            source.svid("short")
        assert source.svid()


class TestWaiting:
    def test_ends_at_once_when_there_is_something(self, source: OpenSource, authority: FakeAuthority) -> None:
        source.hold(context(authority))
        source.wait_until_ready(NOTHING)

    def test_ends_when_something_comes_from_another_thread(self, source: OpenSource, authority: FakeAuthority) -> None:
        done = threading.Thread(target=source.wait_until_ready, args=(PATIENCE,))
        done.start()
        source.trouble(OSError("not yet"))
        source.hold(context(authority))
        done.join(20)
        assert not done.is_alive()

    async def test_of_a_coroutine_ends_when_something_comes_from_another_thread(
        self, source: OpenSource, authority: FakeAuthority
    ) -> None:
        waiting = asyncio.create_task(source.ready(PATIENCE))
        await until(lambda: source._changes._subscribers._functions)
        await asyncio.to_thread(source.trouble, OSError("not yet"))
        assert not waiting.done()
        await asyncio.to_thread(source.hold, context(authority))
        await waiting
        assert not source._changes._subscribers._functions

    async def test_goes_on_when_what_came_was_lost_at_once(self, source: OpenSource, authority: FakeAuthority) -> None:
        waiting = asyncio.create_task(source.ready(PATIENCE))
        await until(lambda: source._changes._subscribers._functions)
        source.hold(context(authority))
        source.lose(REFUSED)
        for _ in range(3):  # it wakes, and finds nothing
            await asyncio.sleep(0)
        assert not waiting.done()
        source.hold(context(authority))
        await waiting

    async def test_in_vain_tells_the_last_trouble_and_what_to_do(self, source: OpenSource) -> None:
        source.trouble(OSError("the disk is gone"))
        told = why(lambda: source.wait_until_ready(timedelta(milliseconds=5)))
        assert "the disk is gone" in told
        assert told.endswith("; mend the test")
        with pytest.raises(NotReady) as refusal:
            await source.ready(timedelta(milliseconds=5))
        assert str(refusal.value) == told

    def test_in_vain_tells_why_everything_was_lost(self, source: OpenSource) -> None:
        source.lose(REFUSED)
        assert str(REFUSED) in why(lambda: source.wait_until_ready(NOTHING))

    def test_is_not_content_with_an_svid_that_has_ended(self, source: OpenSource, authority: FakeAuthority) -> None:
        source.hold(context(authority, lasting(authority, NOTHING)))
        assert "has ended" in why(lambda: source.wait_until_ready(NOTHING))

    async def test_ends_when_the_source_is_closed(self, source: OpenSource) -> None:
        waiting = asyncio.create_task(source.ready(PATIENCE))
        blocking = asyncio.create_task(asyncio.to_thread(source.wait_until_ready, PATIENCE))
        await until(lambda: source._changes._subscribers._functions and source._changes._condition._waiters)  # type: ignore[attr-defined]  # inner
        await asyncio.to_thread(source.close)
        for task in (waiting, blocking):
            with pytest.raises(NotReady, match="closed"):
                await task


class TestUpdates:
    async def test_are_the_present_snapshot_and_then_each_change_from_any_thread(
        self, source: OpenSource, authority: FakeAuthority
    ) -> None:
        first, second = context(authority), context(authority)
        updates = source.updates()
        coming = asyncio.ensure_future(anext(updates))
        await until(lambda: source._changes._subscribers._functions)
        await asyncio.to_thread(source.hold, first)
        assert await coming is first
        await asyncio.to_thread(source.hold, second)
        assert await anext(updates) is second
        await updates.aclose()
        assert not source._changes._subscribers._functions

    async def test_that_nobody_took_in_time_are_passed_over(self, source: OpenSource, authority: FakeAuthority) -> None:
        source.hold(context(authority))
        updates = source.updates()
        await anext(updates)
        contexts = [context(authority) for _ in range(3)]
        for each in contexts:
            source.hold(each)
        assert await anext(updates) is contexts[-1]
        await updates.aclose()

    async def test_are_none_of_an_svid_that_has_ended(self, source: OpenSource, authority: FakeAuthority) -> None:
        source.hold(context(authority, lasting(authority, NOTHING)))
        updates = source.updates()
        coming = asyncio.ensure_future(anext(updates))
        await until(lambda: source._changes._subscribers._functions)
        source.hold(fresh := context(authority))
        assert await coming is fresh
        await updates.aclose()

    async def test_do_not_repeat_what_is_still_held(self, source: OpenSource, authority: FakeAuthority) -> None:
        source.hold(held := context(authority))
        seen: list[X509Context] = []

        async def follow() -> None:
            async for update in source.updates():
                seen.append(update)  # noqa: PERF401  # one by one, as they come

        following = asyncio.create_task(follow())
        await until(lambda: seen)
        source.trouble(OSError("gone"))
        source.offer(held)
        source.close()
        await following
        assert seen == [held]

    async def test_end_with_the_source_and_with_a_task_that_is_cancelled(
        self, source: OpenSource, authority: FakeAuthority
    ) -> None:
        source.hold(context(authority))

        async def follow() -> None:
            async for _ in source.updates():
                pass

        tasks = [asyncio.create_task(follow()) for _ in range(2)]
        await until(lambda: len(source._changes._subscribers._functions) == 2)
        tasks[0].cancel()
        await until(lambda: len(source._changes._subscribers._functions) == 1)
        await asyncio.to_thread(source.close)
        await tasks[1]

    def test_of_a_loop_that_is_gone_harm_nobody(
        self, source: OpenSource, authority: FakeAuthority, caplog: pytest.LogCaptureFixture
    ) -> None:
        loop, updates = asyncio.new_event_loop(), source.updates()
        source.hold(context(authority))
        loop.run_until_complete(anext(updates))
        loop.close()
        source.hold(held := context(authority))
        assert source.x509_context() is held
        assert not caplog.records


class TestSubscribers:
    def test_hear_of_loss_and_end_as_well(self, source: OpenSource, authority: FakeAuthority) -> None:
        ready: list[bool] = []
        source.subscribe(lambda: ready.append(source.status().ready))
        source.hold(context(authority))
        source.trouble(OSError("no change"))
        source.lose(REFUSED)
        source.close()
        assert ready == [True, False, False]

    def test_one_that_fails_keeps_nobody_else_from_hearing(
        self, source: OpenSource, authority: FakeAuthority, caplog: pytest.LogCaptureFixture
    ) -> None:
        told: list[str] = []
        source.subscribe([].pop)
        source.subscribe(lambda: told.append("changed"))
        source.hold(context(authority))
        assert told == ["changed"]
        assert "a subscriber of the test failed" in caplog.text


class TestStatus:
    def test_tells_age_and_remaining_life(self, source: OpenSource, authority: FakeAuthority, clock: FakeClock) -> None:
        svid = lasting(authority)
        empty = source.status()
        assert (empty.ready, empty.spiffe_id, empty.age, empty.remaining, empty.updates) == (False, None, None, None, 0)
        source.hold(context(authority, svid))
        clock.advance(4 * HOUR)
        status = source.status()
        assert (status.ready, status.spiffe_id, status.trouble, status.updates) == (True, svid.id, None, 1)
        assert (status.age, status.remaining) == (4 * HOUR, 6 * HOUR)
        clock.advance(20 * HOUR)
        assert (source.status().ready, source.status().remaining) == (False, NOTHING)

    def test_of_a_clock_that_went_back_is_no_negative_age(
        self, source: OpenSource, authority: FakeAuthority, clock: FakeClock
    ) -> None:
        source.hold(context(authority))
        clock.advance(-HOUR)
        assert source.status().age == NOTHING


class TestTheLog:
    def test_warns_once_when_no_renewal_came_and_tells_the_end_once(
        self, source: OpenSource, authority: FakeAuthority, clock: FakeClock, caplog: pytest.LogCaptureFixture
    ) -> None:
        svid = lasting(authority)
        source.hold(context(authority, svid))
        clock.advance(8 * HOUR - timedelta(seconds=1))
        source.x509_context()
        assert not caplog.records
        source.trouble(OSError("nobody answers"))
        caplog.clear()
        clock.advance(timedelta(seconds=1))
        for _ in range(3):
            source.x509_context()
            source.status()
        (late,) = caplog.records
        assert late.levelno == logging.WARNING
        for word in (str(svid.id), svid.not_after.isoformat(), "nobody answers", "2 hours", "mend the test"):
            assert word in late.getMessage()
        clock.advance(2 * HOUR)
        for _ in range(3):
            source.status()
        (_, ended) = caplog.records
        assert ended.levelno == logging.ERROR
        for word in (str(svid.id), svid.not_after.isoformat(), "nobody answers", "mend the test"):
            assert word in ended.getMessage()

    def test_is_silent_for_an_svid_that_is_renewed_in_time(
        self, source: OpenSource, authority: FakeAuthority, clock: FakeClock, caplog: pytest.LogCaptureFixture
    ) -> None:
        source.hold(context(authority, lasting(authority, HOUR)))
        source.hold(context(authority, lasting(authority, 10 * HOUR)))
        clock.advance(2 * HOUR)
        source.x509_context()
        assert not caplog.records

    def test_warns_no_second_time_when_only_a_bundle_changed(
        self, source: OpenSource, authority: FakeAuthority, clock: FakeClock, caplog: pytest.LogCaptureFixture
    ) -> None:
        svid = lasting(authority)
        source.hold(context(authority, svid))
        clock.advance(9 * HOUR)
        source.status()
        source.hold(X509Context((svid,), BundleSet()))
        source.status()
        assert len(caplog.records) == 1

    def test_tells_each_new_trouble_once_and_its_end(
        self, source: OpenSource, authority: FakeAuthority, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        source.hold(held := context(authority))
        for text in ("the disk is gone", "the disk is gone", "the disk is on fire"):
            source.trouble(OSError(text))
        source.offer(held)
        source.offer(held)
        assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
            ("WARNING", "the test: the disk is gone (what is held stays in use)"),
            ("WARNING", "the test: the disk is on fire (what is held stays in use)"),
            ("INFO", "the test: all is well again"),
        ]

    def test_tells_many_threads_warning_once(
        self, source: OpenSource, authority: FakeAuthority, clock: FakeClock, caplog: pytest.LogCaptureFixture
    ) -> None:
        source.hold(context(authority))
        clock.advance(9 * HOUR)
        start = threading.Barrier(8)

        def use() -> None:
            start.wait()
            source.x509_context()

        threads = [threading.Thread(target=use) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(caplog.records) == 1


def test_a_reason_keeps_nothing_alive_through_which_it_passed(source: OpenSource) -> None:
    gone = threading.Event()

    def fail() -> None:
        big = OpenSource("something big", "none")
        weakref.finalize(big, gone.set)
        raise NotAuthorized("no identity here")

    try:
        fail()
    except NotAuthorized as error:
        source.lose(error)
    gc.collect()
    assert gone.is_set()
    assert "no identity here" in why(source.x509_context)


def test_a_source_that_nobody_holds_is_forgotten(clock: FakeClock) -> None:
    source, gone = OpenSource("the test", "mend it", clock=clock), threading.Event()
    weakref.finalize(source, gone.set)
    del source
    gc.collect()
    assert gone.is_set()


def _frames(error: BaseException) -> list[int]:
    lines, traceback = [], error.__traceback__
    while traceback is not None:
        lines.append(traceback.tb_lineno)
        traceback = traceback.tb_next
    return lines
