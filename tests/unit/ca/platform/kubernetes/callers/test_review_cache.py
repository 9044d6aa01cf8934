"""ReviewCache: one review for many who ask, for seconds, never beyond the token's end, and no refusal is remembered."""

from __future__ import annotations

import asyncio
import gc
from datetime import timedelta

import pytest

from ca.platform.kubernetes.callers.review_cache import DEFAULT_TTL, MAX_TTL, ReviewCache
from ca.platform.kubernetes.callers.service_account import ServiceAccountCaller
from istio_auth.errors import ConfigurationError, NotAuthenticated, NotReady
from tests.fakes.clock import FakeClock
from tests.fakes.token_issuer import TokenIssuer
from tests.fakes.waiting import until

SECOND = timedelta(seconds=1)
ISSUER = TokenIssuer()


class Reviews:
    """Reviews of an API server, which answers when it is let and as it is told."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.asked: list[str] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.error: Exception | None = None
        self.start = clock.now()

    def monotonic(self) -> float:
        return (self.clock.now() - self.start).total_seconds()

    async def review(self, token: str) -> ServiceAccountCaller:
        self.asked.append(token)
        number = len(self.asked)
        await self.may_answer.wait()
        if self.error is not None:
            raise self.error
        return ServiceAccountCaller("default", f"web-{number}")

    def cache(self, *, ttl: timedelta = DEFAULT_TTL, most: int = 100) -> ReviewCache:
        return ReviewCache(self.review, self.clock, self.monotonic, ttl=ttl, most=most)


@pytest.fixture
async def reviews(clock: FakeClock) -> Reviews:
    return Reviews(clock)


@pytest.fixture
def token(clock: FakeClock) -> str:
    return ISSUER.token(clock.now())


async def test_an_answer_is_good_for_the_ttl(reviews: Reviews, token: str) -> None:
    cache = reviews.cache()
    first = await cache.caller(token)
    reviews.clock.advance(DEFAULT_TTL - SECOND)
    assert await cache.caller(token) == first
    reviews.clock.advance(SECOND)
    assert await cache.caller(token) != first
    assert (len(reviews.asked), cache.asked, cache.reviewed) == (2, 3, 2)


async def test_each_token_has_its_own_answer(reviews: Reviews, token: str) -> None:
    cache = reviews.cache()
    other = ISSUER.token(reviews.clock.now(), jti="other")
    assert await cache.caller(token) != await cache.caller(other)
    assert await cache.caller(token[:-1] + ("A" if token[-1] != "A" else "Q")) != await cache.caller(token)
    assert len(reviews.asked) == 3


async def test_an_answer_is_never_good_beyond_the_end_of_the_token(reviews: Reviews) -> None:
    cache = reviews.cache()
    now = reviews.clock.now()
    token = ISSUER.token(now, exp=int(now.timestamp()) + 2)
    await cache.caller(token)
    reviews.clock.advance(SECOND)
    await cache.caller(token)
    assert len(reviews.asked) == 1
    reviews.clock.advance(SECOND)
    await cache.caller(token)
    await cache.caller(token)  # within what clocks may differ the API server still accepts it; nothing is kept
    assert len(reviews.asked) == 3


async def test_a_token_that_tells_no_end_is_kept_for_the_ttl(reviews: Reviews) -> None:
    cache = reviews.cache()
    await cache.caller("opaque")
    await cache.caller("opaque")
    reviews.clock.advance(DEFAULT_TTL)
    await cache.caller("opaque")
    assert len(reviews.asked) == 2


async def test_the_age_of_an_answer_counts_from_when_its_review_began(reviews: Reviews, token: str) -> None:
    cache = reviews.cache()
    reviews.may_answer.clear()
    asking = asyncio.create_task(cache.caller(token))
    await until(lambda: reviews.asked)
    reviews.clock.advance(DEFAULT_TTL - SECOND)
    reviews.may_answer.set()
    await asking
    reviews.clock.advance(SECOND)
    await cache.caller(token)
    assert len(reviews.asked) == 2


async def test_all_who_ask_at_once_share_one_review(reviews: Reviews, token: str) -> None:
    cache = reviews.cache()
    reviews.may_answer.clear()
    asking = [asyncio.create_task(cache.caller(token)) for _ in range(50)]
    await until(lambda: cache.asked == 50)
    reviews.may_answer.set()
    assert len(set(await asyncio.gather(*asking))) == 1
    assert len(reviews.asked) == 1


async def test_who_asked_first_can_leave_without_harm_to_the_others(reviews: Reviews, token: str) -> None:
    cache = reviews.cache()
    reviews.may_answer.clear()
    first = asyncio.create_task(cache.caller(token))
    await until(lambda: reviews.asked)
    second = asyncio.create_task(cache.caller(token))
    await until(lambda: cache.asked == 2)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    reviews.may_answer.set()
    assert (await second).service_account == "web-1"
    assert len(reviews.asked) == 1


async def test_if_all_leave_the_answer_is_kept_and_a_refusal_makes_no_noise(
    reviews: Reviews, token: str, caplog: pytest.LogCaptureFixture
) -> None:
    gc.collect()  # what others have left
    caplog.clear()
    cache = reviews.cache()
    for error in (NotAuthenticated("unknown"), None):
        reviews.error = error
        reviews.may_answer.clear()
        before = len(reviews.asked)
        only = asyncio.create_task(cache.caller(token))
        await until(lambda before=before: len(reviews.asked) > before)  # type: ignore[misc]  # of a default
        only.cancel()
        with pytest.raises(asyncio.CancelledError):
            await only
        reviews.may_answer.set()
        await until(lambda: not cache._running)
        gc.collect()  # when asyncio tells of an exception that nobody has looked at
        assert caplog.records == []
    assert (await cache.caller(token)).service_account == "web-2"
    assert len(reviews.asked) == 2


@pytest.mark.parametrize("error", [NotAuthenticated("unknown"), NotReady("away")])
async def test_a_failure_is_shared_by_who_asked_at_once_and_not_kept(
    reviews: Reviews, token: str, error: Exception
) -> None:
    cache = reviews.cache()
    reviews.error = error
    reviews.may_answer.clear()
    asking = [asyncio.create_task(cache.caller(token)) for _ in range(3)]
    await until(lambda: cache.asked == 3)
    reviews.may_answer.set()
    assert {type(found) for found in await asyncio.gather(*asking, return_exceptions=True)} == {type(error)}
    reviews.error = None
    assert (await cache.caller(token)).service_account == "web-2"


async def test_only_so_many_answers_are_kept(reviews: Reviews) -> None:
    cache = reviews.cache(most=3)
    for name in "abcd":
        await cache.caller(name)
    assert len(cache._answers) == 3
    for name in "dcb":
        await cache.caller(name)
    assert reviews.asked == list("abcd")
    await cache.caller("a")
    assert reviews.asked == list("abcda")


async def test_answers_that_are_over_are_forgotten(reviews: Reviews) -> None:
    cache = reviews.cache()
    for name in "abc":
        await cache.caller(name)
    reviews.clock.advance(DEFAULT_TTL)
    await cache.caller("d")
    assert len(cache._answers) == 1


async def test_no_token_is_kept(reviews: Reviews, token: str) -> None:
    cache = reviews.cache()
    await cache.caller(token)
    assert token not in repr(cache._answers)
    assert token.rpartition(".")[2] not in repr(vars(cache))


async def test_without_a_ttl_nothing_is_kept_and_reviews_are_still_shared(reviews: Reviews, token: str) -> None:
    cache = reviews.cache(ttl=timedelta())
    await asyncio.gather(cache.caller(token), cache.caller(token))
    assert len(reviews.asked) == 1
    await cache.caller(token)
    assert len(reviews.asked) == 2
    assert cache._answers == {}


@pytest.mark.parametrize("ttl", [MAX_TTL + SECOND / 1000, -SECOND])
async def test_answers_are_kept_for_seconds_at_most(reviews: Reviews, ttl: timedelta) -> None:
    with pytest.raises(ConfigurationError):
        reviews.cache(ttl=ttl)
    reviews.cache(ttl=MAX_TTL)


async def test_closing_ends_what_runs_and_tells_who_waits(reviews: Reviews, token: str) -> None:
    cache = reviews.cache()
    reviews.may_answer.clear()
    asking = asyncio.create_task(cache.caller(token))
    await until(lambda: reviews.asked)
    await cache.close()
    with pytest.raises(NotReady):
        await asking
    await cache.close()
