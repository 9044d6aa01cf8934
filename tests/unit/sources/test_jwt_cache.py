"""JWT-SVIDs on hand: until half their life, once for all who ask, through an outage, and not after a refusal."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta

import pytest

from istio_auth.errors import IstioAuthError, NotAuthorized, NotReady
from istio_auth.jwt_svid import JWTSVID
from istio_auth.sources.jwt_cache import JWTSVIDCache, Wanted
from istio_auth.spiffe_id import SpiffeID, TrustDomain
from istio_auth.strict_json import JSON
from tests.fakes.clock import FakeClock
from tests.fakes.token_issuer import TokenIssuer
from tests.fakes.waiting import until

DB = Wanted(("db",))
TD = TrustDomain("cluster.local")
WEB = "spiffe://cluster.local/web"
ISSUER = TokenIssuer()
LIFE = timedelta(minutes=10)


class Agent:
    """Makes JWT-SVIDs that differ, or fails, or keeps everybody waiting."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.asked: list[Wanted] = []
        self.error: IstioAuthError | None = None
        self.life = LIFE
        self.meanwhile: Callable[[], object] = lambda: None

    def fetch(self, wanted: Wanted) -> JWTSVID:
        self.asked.append(wanted)
        self.meanwhile()
        if self.error is not None:
            raise self.error
        end = int((self.clock.now() + self.life).timestamp())
        payload: dict[str, JSON] = {"sub": WEB, "aud": [*wanted.audiences], "exp": end, "jti": str(len(self.asked))}
        return JWTSVID.of_agent(ISSUER.sign(payload))

    def held_up(self) -> tuple[threading.Event, threading.Event]:
        """Keep whoever asks waiting: an event that tells of the first, and one that lets them go."""
        here, go = threading.Event(), threading.Event()

        def wait() -> None:
            here.set()
            go.wait(10)

        self.meanwhile = wait
        return here, go


@pytest.fixture
def agent(clock: FakeClock) -> Agent:
    return Agent(clock)


@pytest.fixture
def cache(agent: Agent, clock: FakeClock) -> JWTSVIDCache:
    return JWTSVIDCache(agent.fetch, clock)


def number(svid: JWTSVID) -> str:
    return svid.claims.token_id


class TestHalfOfItsLife:
    def test_is_how_long_it_is_not_asked_for_again(self, cache: JWTSVIDCache, agent: Agent, clock: FakeClock) -> None:
        first = cache.get(DB)
        clock.advance(LIFE / 2 - timedelta(seconds=1))
        assert cache.get(DB) is first
        clock.advance(timedelta(seconds=1))
        second = cache.get(DB)
        assert (number(first), number(second), len(agent.asked)) == ("1", "2", 2)

    def test_is_each_ones_own(self, cache: JWTSVIDCache, agent: Agent) -> None:
        others = (Wanted(("a", "db")), Wanted(("db",), SpiffeID.parse(WEB)), Wanted(("db",), hint="x"))
        assert len({number(cache.get(wanted)) for wanted in (DB, *others, DB)}) == 4
        assert agent.asked == [DB, *others]


class TestAnOutage:
    def test_leaves_the_one_on_hand_until_its_end(self, cache: JWTSVIDCache, agent: Agent, clock: FakeClock) -> None:
        first = cache.get(DB)
        agent.error = NotReady("nobody is there")
        clock.advance(LIFE - timedelta(seconds=1))
        assert cache.get(DB) is first
        clock.advance(timedelta(seconds=1))
        with pytest.raises(NotReady):
            cache.get(DB)
        agent.error = None
        assert number(cache.get(DB)) == "4"

    def test_is_not_looked_at_by_each_caller(self, cache: JWTSVIDCache, agent: Agent, clock: FakeClock) -> None:
        first = cache.get(DB)
        agent.error = NotReady("nobody is there")
        clock.advance(LIFE / 2)
        assert [cache.get(DB) for _ in range(5)] == [first] * 5
        assert len(agent.asked) == 2
        clock.advance(timedelta(minutes=1))
        cache.get(DB)
        assert len(agent.asked) == 3

    def test_is_told_at_once_if_nothing_is_on_hand(self, cache: JWTSVIDCache, agent: Agent) -> None:
        agent.error = NotReady("nobody is there")
        for _ in range(2):
            with pytest.raises(NotReady):
                cache.get(DB)
        assert len(agent.asked) == 2


def test_one_that_has_ended_already_is_none(cache: JWTSVIDCache, agent: Agent, clock: FakeClock) -> None:
    agent.life = timedelta()
    with pytest.raises(NotReady, match="has ended"):
        cache.get(DB)
    agent.life = timedelta(seconds=1)
    first = cache.get(DB)
    clock.advance(timedelta(seconds=0.5))
    agent.life = timedelta(seconds=-1)
    assert cache.get(DB) is first


def test_a_refusal_takes_away_what_is_on_hand(cache: JWTSVIDCache, agent: Agent, clock: FakeClock) -> None:
    cache.get(DB)
    clock.advance(LIFE / 2)
    agent.error = NotAuthorized("no identity issued")
    with pytest.raises(NotAuthorized):
        cache.get(DB)
    agent.error = NotReady("nobody is there")
    with pytest.raises(NotReady):
        cache.get(DB)


class TestAChange:
    def test_has_each_asked_for_again_and_keeps_it_until_that_succeeds(self, cache: JWTSVIDCache, agent: Agent) -> None:
        first = cache.get(DB)
        cache.renew({TD})
        agent.error = NotReady("nobody is there")
        assert cache.get(DB) is first
        cache.renew({TD})
        agent.error = None
        assert number(cache.get(DB)) == "3"

    def test_may_take_all_away(self, cache: JWTSVIDCache, agent: Agent) -> None:
        cache.get(DB)
        cache.forget()
        agent.error = NotReady("nobody is there")
        with pytest.raises(NotReady):
            cache.get(DB)

    def test_of_other_keys_changes_nothing(self, cache: JWTSVIDCache) -> None:
        first = cache.get(DB)
        cache.renew({TrustDomain("partner.test")})
        assert cache.get(DB) is first

    @pytest.mark.parametrize("change", [lambda cache: cache.renew({TD}), JWTSVIDCache.forget], ids=["renew", "forget"])
    def test_that_comes_while_one_is_fetched_holds_for_that_one_too(
        self, cache: JWTSVIDCache, agent: Agent, change: Callable[[JWTSVIDCache], None]
    ) -> None:
        agent.meanwhile = lambda: change(cache)
        cache.get(DB)
        agent.meanwhile = lambda: None
        assert number(cache.get(DB)) == "2"


class TestAllWhoAskAtOnce:
    def test_get_the_answer_to_one_question(self, cache: JWTSVIDCache, agent: Agent) -> None:
        here, go = agent.held_up()
        with ThreadPoolExecutor(8) as threads:
            answers = [threads.submit(cache.get, DB) for _ in range(8)]
            assert here.wait(10)
            go.set()
            assert {number(answer.result(10)) for answer in answers} == {"1"}
        assert len(agent.asked) == 1

    def test_get_the_same_error(self, cache: JWTSVIDCache, agent: Agent) -> None:
        here, go = agent.held_up()
        agent.error = NotReady("nobody is there")
        with ThreadPoolExecutor(8) as threads:
            answers = [threads.submit(cache.get, DB) for _ in range(2)]
            assert here.wait(10)
            go.set()
            told = [answer.exception(10) for answer in answers]
        assert [str(error) for error in told] == ["nobody is there"] * 2
        assert len({id(error) for error in (*told, agent.error)}) == 3  # else each would get the others' tracebacks

    def test_wait_for_no_renewal_while_one_is_good(self, cache: JWTSVIDCache, agent: Agent, clock: FakeClock) -> None:
        first = cache.get(DB)
        clock.advance(LIFE / 2)
        here, go = agent.held_up()
        with ThreadPoolExecutor(1) as threads:
            renewing = threads.submit(cache.get, DB)
            assert here.wait(10)
            assert cache.get(DB) is first
            go.set()
            assert number(renewing.result(10)) == "2"

    async def test_do_not_block_a_loop_nor_each_other(self, cache: JWTSVIDCache, agent: Agent) -> None:
        go = threading.Event()
        agent.meanwhile = lambda: go.wait(10)
        waiting = [asyncio.create_task(cache.get_async(DB)) for _ in range(20)]
        await until(lambda: agent.asked)
        waiting[0].cancel()
        waiting[1].cancel()
        await asyncio.wait(waiting[:2])
        assert all(task.cancelled() for task in waiting[:2])
        go.set()
        assert {number(svid) for svid in await asyncio.gather(*waiting[2:])} == {"1"}
        assert number(await cache.get_async(DB)) == "1"
        assert len(agent.asked) == 1

    async def test_hear_of_an_error_in_a_loop_too(self, cache: JWTSVIDCache, agent: Agent) -> None:
        go = threading.Event()
        agent.meanwhile = lambda: go.wait(10)
        agent.error = NotReady("nobody is there")
        waiting = [asyncio.create_task(cache.get_async(DB)) for _ in range(3)]
        await until(lambda: agent.asked)
        go.set()
        answers = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(answer) for answer in answers] == [NotReady] * 3

    def test_are_not_left_waiting_by_one_who_was_interrupted(self, cache: JWTSVIDCache, agent: Agent) -> None:
        flights: list[Future[JWTSVID]] = []

        def interrupt() -> None:
            flights.append(cache._flights[DB])  # which the others wait for
            raise KeyboardInterrupt

        agent.meanwhile = interrupt
        with pytest.raises(KeyboardInterrupt):
            cache.get(DB)
        assert isinstance(flights[0].exception(0), NotReady)
        agent.meanwhile = lambda: None
        assert number(cache.get(DB)) == "2"


def test_ever_new_audiences_do_not_fill_the_memory(cache: JWTSVIDCache, agent: Agent, clock: FakeClock) -> None:
    for place in range(1100):
        cache.get(Wanted((str(place),)))
    assert len(cache._on_hand) == 1000
    cache.get(Wanted(("1099",)))
    assert len(agent.asked) == 1100
    clock.advance(LIFE)
    cache.get(DB)
    assert list(cache._on_hand) == [DB]


def test_a_forked_child_waits_for_nobody_of_its_parent(cache: JWTSVIDCache, agent: Agent) -> None:
    here, go = agent.held_up()
    with ThreadPoolExecutor(1) as threads:
        parent = threads.submit(cache.get, DB)
        assert here.wait(10)
        agent.meanwhile = lambda: None
        cache.after_fork()  # as the child has it
        assert number(cache.get(DB)) == "2"
        go.set()
        parent.result(10)
