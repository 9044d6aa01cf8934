"""IssuerKeys: one fetch at a time, again when it is time, and the last good keys until there are better ones."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import timedelta

import pytest

from istio_auth.errors import ConfigurationError, MalformedError, NotReady
from istio_auth.jwks import KeySet
from istio_auth.tokens.fetch import FetchedKeys
from istio_auth.tokens.issuer_keys import IssuerKeys, KeySetTimes
from tests.fakes.clock import FakeClock
from tests.fakes.token_issuer import TokenIssuer
from tests.fakes.waiting import until

HOUR = timedelta(hours=1)
MS = timedelta(milliseconds=1)
LONG = KeySetTimes(every=HOUR, soonest=HOUR, latest=HOUR, retry=HOUR, cooldown=HOUR, deadline=HOUR)
OLD, NEW = TokenIssuer(place=30).keys(), TokenIssuer(place=31).keys()


class Issuer:
    """Answers each fetch as a test says: with keys, with an error, or not before it is let."""

    def __init__(self, *answers: KeySet | Exception, good_for: timedelta | None = None) -> None:
        self.answers = list(answers)
        self.good_for = good_for
        self.asked = 0
        self.at_once = 0
        self.most_at_once = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def fetch(self) -> FetchedKeys:
        self.asked += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await self.gate.wait()
        finally:
            self.at_once -= 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return FetchedKeys(answer, self.good_for)


@asynccontextmanager
async def kept(issuer: Issuer, times: KeySetTimes, clock: FakeClock | None = None) -> AsyncIterator[IssuerKeys]:
    keys = IssuerKeys("https://issuer.test", issuer.fetch, clock=clock or FakeClock(), times=times)
    task = keys.start()
    try:
        yield keys
    finally:
        assert not task.done(), "it fetches for ever"
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_the_first_fetch_is_waited_for_and_then_nothing_is() -> None:
    issuer = Issuer(OLD)
    issuer.gate.clear()
    async with kept(issuer, LONG) as keys:
        waiting = [asyncio.create_task(keys.keys()) for _ in range(100)]
        await until(lambda: issuer.asked)
        assert not any(task.done() for task in waiting)
        assert not keys.status().ready
        issuer.gate.set()
        assert await asyncio.gather(*waiting) == [OLD] * 100
        assert await keys.keys() is OLD
        assert (issuer.asked, keys.status().ready, keys.status().keys) == (1, True, 1)


async def test_before_the_first_keys_nobody_is_let_in_and_told_why_and_when_to_come_again() -> None:
    issuer = Issuer(NotReady("nobody is there"))
    async with kept(issuer, LONG) as keys:
        with pytest.raises(NotReady, match="nobody is there") as caught:
            await keys.keys()
        assert caught.value.public == "not ready"
        assert caught.value.retry_after is not None
        assert timedelta(minutes=25) < caught.value.retry_after <= HOUR
        issuer.gate.clear()
        status = keys.status()
        assert (status.ready, status.keys, status.age, status.trouble) == (False, 0, None, "nobody is there")


async def test_keys_that_nobody_fetches_are_not_waited_for() -> None:
    keys = IssuerKeys("https://issuer.test", Issuer(OLD).fetch, clock=FakeClock(), times=LONG)
    with pytest.raises(NotReady, match="async with"):
        await keys.keys()
    assert not keys.status().ready


async def test_after_a_failure_it_is_tried_again_until_it_works() -> None:
    issuer = Issuer(NotReady("one"), MalformedError("two"), OSError("a fault of ours"), OLD)
    async with kept(issuer, replace(LONG, retry=MS)) as keys:
        await until(lambda: keys.status().ready)
        assert await keys.keys() is OLD
        assert (issuer.asked, keys.status().trouble) == (4, "")


async def test_the_last_good_keys_stay_through_an_outage(caplog: pytest.LogCaptureFixture) -> None:
    clock, issuer = FakeClock(), Issuer(OLD, NotReady("away"))
    times = replace(LONG, every=MS, soonest=MS, retry=MS)
    with caplog.at_level(logging.INFO):
        async with kept(issuer, times, clock) as keys:
            await until(lambda: issuer.asked > 4)
            clock.advance(times.keep)
            assert await keys.keys() is OLD
            status = keys.status()
            assert (status.ready, status.age, status.trouble) == (True, times.keep, "away")
            clock.advance(timedelta(seconds=1))
            with pytest.raises(NotReady, match="7 days 1 second ago: away"):
                await keys.keys()
            assert not keys.status().ready
            issuer.answers = [NEW]
            await until(lambda: keys.status().ready)
            assert await keys.keys() is NEW
            assert keys.status().age == timedelta()
    said = [record.getMessage() for record in caplog.records if "issuer.test" in record.getMessage()]
    assert said == [
        "the keys of the token issuer https://issuer.test can not be fetched: away",
        "the keys of the token issuer https://issuer.test are fetched again",
    ]


async def test_keys_that_are_the_same_stay_the_same_object() -> None:
    same = TokenIssuer(place=30).keys()
    assert same is not OLD
    issuer = Issuer(OLD, same)
    async with kept(issuer, replace(LONG, every=MS, soonest=MS)) as keys:
        await until(lambda: issuer.asked > 3)
        assert await keys.keys() is OLD


async def test_an_issuer_may_take_all_its_keys_back() -> None:
    issuer = Issuer(OLD, KeySet())
    async with kept(issuer, replace(LONG, every=MS, soonest=MS)) as keys:
        await until(lambda: issuer.asked > 2)
        assert (await keys.keys()).keys == ()


class TestTheServerSaysForHowLongKeysAreGood:
    async def test_but_not_for_less_than_is_decent(self) -> None:
        issuer = Issuer(OLD, good_for=timedelta())
        async with kept(issuer, LONG) as keys:
            assert await keys.keys() is OLD
            assert 0.85 * 3600 < keys._due - keys._now() <= 3600

    async def test_and_not_for_more_than_is_safe(self) -> None:
        issuer = Issuer(OLD, good_for=timedelta(days=365))
        async with kept(issuer, replace(LONG, soonest=MS, latest=5 * MS)):
            await until(lambda: issuer.asked > 2)

    async def test_in_between(self) -> None:
        issuer = Issuer(OLD, good_for=5 * MS)
        async with kept(issuer, replace(LONG, soonest=MS)):
            await until(lambda: issuer.asked > 2)


class TestAnUnknownKey:
    async def test_is_looked_for_once_by_all_who_ask(self) -> None:
        issuer = Issuer(OLD, NEW)
        async with kept(issuer, replace(LONG, cooldown=MS)) as keys:
            old = await keys.keys()
            await until(lambda: keys._now() > keys._begun + 0.001)
            issuer.gate.clear()
            asking = [asyncio.create_task(keys.newer(old)) for _ in range(100)]
            await until(lambda: issuer.at_once)
            assert await keys.keys() is OLD, "others go on meanwhile"
            issuer.gate.set()
            assert await asyncio.gather(*asking) == [NEW] * 100
            assert (issuer.asked, issuer.most_at_once) == (2, 1)
            assert await keys.newer(old) is NEW, "without asking, for they are newer than that"
            assert issuer.asked == 2

    async def test_is_not_looked_for_again_so_soon(self) -> None:
        issuer = Issuer(OLD)
        async with kept(issuer, LONG) as keys:
            old = await keys.keys()
            for _ in range(1_000):
                assert await keys.newer(old) is None
            assert issuer.asked == 1

    async def test_that_nobody_has_is_told_after_one_look(self) -> None:
        issuer = Issuer(OLD)
        async with kept(issuer, replace(LONG, cooldown=MS)) as keys:
            old = await keys.keys()
            await until(lambda: keys._now() > keys._begun + 0.001)
            assert await keys.newer(old) is None
            assert issuer.asked == 2

    async def test_costs_the_last_good_ones_nothing_when_the_look_fails(self) -> None:
        issuer = Issuer(OLD, NotReady("away"))
        async with kept(issuer, replace(LONG, cooldown=MS)) as keys:
            old = await keys.keys()
            await until(lambda: keys._now() > keys._begun + 0.001)
            assert await keys.newer(old) is None
            assert await keys.keys() is OLD


async def test_a_fetch_that_takes_too_long_is_given_up() -> None:
    issuer = Issuer(OLD)
    issuer.gate.clear()
    async with kept(issuer, replace(LONG, deadline=5 * MS)) as keys:
        with pytest.raises(NotReady, match="no whole answer"):
            await keys.keys()
        assert issuer.at_once == 0


async def test_who_leaves_takes_nobody_along_and_who_waits_at_the_end_is_told() -> None:
    issuer = Issuer(OLD)
    issuer.gate.clear()
    async with kept(issuer, LONG) as keys:
        leaving, staying = (asyncio.create_task(keys.keys()) for _ in range(2))
        await until(lambda: issuer.at_once)
        leaving.cancel()
        with suppress(asyncio.CancelledError):
            await leaving
        assert issuer.at_once == 1
    with pytest.raises(NotReady, match="closed"):
        await staying
    with pytest.raises(NotReady, match="closed"):
        await keys.keys()
    assert await keys.newer(OLD) is None


async def test_who_asks_while_it_ends_before_it_began_is_told() -> None:
    issuer = Issuer(OLD)
    keys = IssuerKeys("https://issuer.test", issuer.fetch, clock=FakeClock(), times=LONG)
    task = keys.start()
    task.cancel()
    async with asyncio.timeout(20):
        with pytest.raises(NotReady, match="closed"):
            await keys.keys()
    assert issuer.asked == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"every": timedelta()},
        {"retry": -MS},
        {"cooldown": timedelta()},
        {"deadline": timedelta()},
        {"soonest": 2 * HOUR},
        {"keep": HOUR},
    ],
)
def test_times_make_sense(changes: dict[str, timedelta]) -> None:
    with pytest.raises(ConfigurationError):
        replace(LONG, **changes)
