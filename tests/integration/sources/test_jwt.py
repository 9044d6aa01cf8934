"""JWTSource against a Workload API on a real socket: fetching, validating, rotation, redaction, outages."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import weakref
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest

from istio_auth.errors import ConfigurationError, MissingError, NotAuthorized, NotReady
from istio_auth.proto import workload_api_pb2 as messages
from istio_auth.rpc.forking import dropping
from istio_auth.sources.jwt import JWTSource
from istio_auth.sources.workload_api import WorkloadAPISource
from istio_auth.spiffe_id import SpiffeID, TrustDomain
from istio_auth.strict_json import JSON
from istio_auth.tokens import TokenFault, TokenRefused
from tests.fakes.clock import FakeClock
from tests.fakes.token_issuer import TokenIssuer
from tests.fakes.waiting import until
from tests.fakes.workload_api import Context, FakeWorkloadAPI, jwt_bundles

TD, PARTNER = TrustDomain("cluster.local"), TrustDomain("partner.test")
WEB, ADMIN = "spiffe://cluster.local/web", "spiffe://cluster.local/admin"
ISSUER, NEXT, FEDERATED = TokenIssuer(), TokenIssuer(place=1), TokenIssuer(place=2)
SOON = timedelta(seconds=60)


class Agent(FakeWorkloadAPI):
    """Signs JWT-SVIDs for two identities, and says the bundles."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.issuer = ISSUER
        self.ids = {WEB: "", ADMIN: "internal"}
        self.asked: list[messages.JWTSVIDRequest] = []
        self.before: Callable[[Context], object] = lambda _context: None
        self.jwt_svids = self._answer
        self.jwt_bundles.say(jwt_bundles({"cluster.local": ISSUER, "partner.test": FEDERATED}))

    def token(self, audience: list[str], spiffe_id: str = WEB, issuer: TokenIssuer | None = None) -> str:
        end = int((datetime.now(UTC) + timedelta(minutes=5)).timestamp())
        audiences: list[JSON] = [*audience]
        payload: dict[str, JSON] = {"sub": spiffe_id, "aud": audiences, "exp": end, "jti": str(len(self.asked))}
        return (issuer or self.issuer).sign(payload)

    def _answer(self, request: messages.JWTSVIDRequest, context: Context) -> messages.JWTSVIDResponse:
        self.asked.append(request)
        self.before(context)
        ids = [request.spiffe_id] if request.spiffe_id else list(self.ids)
        if not set(ids) <= set(self.ids):
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "no identity issued")
        svids = [
            messages.JWTSVID(spiffe_id=one, svid=self.token(list(request.audience), one), hint=self.ids[one])
            for one in ids
        ]
        return messages.JWTSVIDResponse(svids=svids)


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    with Agent(tmp_path / "agent.sock") as agent:
        yield agent


@pytest.fixture
def source(agent: Agent) -> Iterator[JWTSource]:
    with JWTSource(agent.address) as source:
        source.wait_until_ready(SOON)
        yield source


def unavailable(context: Context) -> None:
    context.abort(grpc.StatusCode.UNAVAILABLE, "load shedding")


class TestFetching:
    def test_gives_the_default_identity_or_the_one_that_is_asked_for(self, source: JWTSource, agent: Agent) -> None:
        assert str(source.fetch("db").id) == WEB
        assert str(source.fetch("db", spiffe_id=SpiffeID.parse(ADMIN)).id) == ADMIN
        assert str(source.fetch("db", hint="internal").id) == ADMIN
        assert [request.spiffe_id for request in agent.asked] == ["", ADMIN, ""]

    def test_asks_once_for_each_set_of_audiences(self, source: JWTSource, agent: Agent) -> None:
        first = source.fetch("b", "a")
        assert source.fetch("a", "b", "a") is first
        assert source.fetch("a") is not first
        assert [list(request.audience) for request in agent.asked] == [["a", "b"], ["a"]]

    async def test_does_not_block_an_event_loop(self, source: JWTSource, agent: Agent) -> None:
        go = threading.Event()
        agent.before = lambda _context: go.wait(60)
        waiting = [asyncio.create_task(source.fetch_async("db")) for _ in range(10)]
        await until(lambda: agent.asked)
        go.set()
        assert len({svid.token for svid in await asyncio.gather(*waiting)}) == 1
        assert len(agent.asked) == 1

    def test_needs_somebody_whom_it_is_for(self, source: JWTSource, agent: Agent) -> None:
        for audiences in ((), ("",)):
            with pytest.raises(ConfigurationError):
                source.fetch(*audiences)
        assert agent.asked == []

    def test_gives_no_identity_that_is_not_ours(self, source: JWTSource) -> None:
        with pytest.raises(NotAuthorized):
            source.fetch("db", spiffe_id=SpiffeID.parse("spiffe://cluster.local/other"))
        with pytest.raises(MissingError, match="internal"):
            source.fetch("db", hint="external")

    def test_of_what_was_fetched_lasts_through_an_outage(self, source: JWTSource, agent: Agent) -> None:
        first = source.fetch("db")
        agent.stop()
        assert source.fetch("db") is first
        with pytest.raises(NotReady):
            source.fetch("other")

    def test_tells_of_an_agent_that_does_not_do_it(self, source: JWTSource, agent: Agent) -> None:
        agent.before = unavailable
        with pytest.raises(NotReady, match="load shedding"):
            source.fetch("db")


class TestValidating:
    def test_takes_the_bundle_of_the_subjects_trust_domain(self, source: JWTSource, agent: Agent) -> None:
        assert str(source.validate(agent.token(["db"]), "db").id) == WEB
        theirs = agent.token(["db"], "spiffe://partner.test/x", FEDERATED)
        assert str(source.validate(theirs, "db").id) == "spiffe://partner.test/x"
        forged = agent.token(["db"], WEB, FEDERATED)
        with pytest.raises(TokenRefused) as caught:
            source.validate(forged, "db")
        assert caught.value.fault is TokenFault.UNKNOWN_KEY
        assert len(source.bundle(TD).keys.keys) == 1

    def test_follows_a_rotation(self, source: JWTSource, agent: Agent) -> None:
        old, new = agent.token(["db"]), agent.token(["db"], issuer=NEXT)
        source.validate(old, "db")
        changed = threading.Event()
        source.subscribe(changed.set)
        agent.jwt_bundles.say(jwt_bundles({"cluster.local": NEXT}))
        assert changed.wait(60)
        source.validate(new, "db")
        with pytest.raises(TokenRefused):
            source.validate(old, "db")
        with pytest.raises(TokenRefused) as caught:  # a bundle that is not there any more is redacted
            source.bundle(PARTNER)
        assert caught.value.fault is TokenFault.FOREIGN_TRUST_DOMAIN
        assert source.status().updates == 2

    def test_goes_on_through_an_outage(self, source: JWTSource, agent: Agent) -> None:
        token = agent.token(["db"])
        agent.stop()
        wait_for(lambda: source.status().trouble)
        assert str(source.validate(token, "db").id) == WEB
        assert source.status().ready
        agent.start()
        wait_for(lambda: source.status().trouble is None)

    def test_looks_at_the_clock(self, agent: Agent, clock: FakeClock) -> None:
        clock.time = datetime.now(UTC)
        token = agent.token(["db"])
        with JWTSource(agent.address, clock=clock) as source:
            source.wait_until_ready(SOON)
            source.validate(token, "db")
            clock.advance(timedelta(hours=1))
            with pytest.raises(TokenRefused) as caught:
                source.validate(token, "db")
            assert caught.value.fault is TokenFault.EXPIRED
            assert source.status().age == timedelta(hours=1)


class TestARedaction:
    def test_of_everything_takes_bundles_and_tokens_away(
        self, source: JWTSource, agent: Agent, caplog: pytest.LogCaptureFixture
    ) -> None:
        token = agent.token(["db"])
        source.fetch("db")
        caplog.set_level(logging.INFO)
        agent.jwt_bundles.refuse(grpc.StatusCode.PERMISSION_DENIED)
        wait_for(lambda: not source.status().ready)
        with pytest.raises(NotAuthorized, match="no identity issued"):
            source.validate(token, "db")
        agent.before = unavailable
        with pytest.raises(NotReady):  # the one that was on hand is not served
            source.fetch("db")
        wait_for(lambda: "nothing is held" in caplog.text)
        agent.jwt_bundles.say(jwt_bundles({"cluster.local": ISSUER}))
        source.wait_until_ready(SOON)
        source.validate(token, "db")
        wait_for(lambda: "all is well again" in caplog.text)

    def test_of_one_identity_takes_its_token_away_when_it_is_renewed(self, source: JWTSource, agent: Agent) -> None:
        admin = SpiffeID.parse(ADMIN)
        source.fetch("db", spiffe_id=admin)
        del agent.ids[ADMIN]
        agent.jwt_bundles.say(jwt_bundles({"cluster.local": NEXT}))  # which makes it due
        wait_for(lambda: source.status().updates == 2)
        with pytest.raises(NotAuthorized):
            source.fetch("db", spiffe_id=admin)


def test_tokens_of_keys_that_are_gone_are_asked_for_again(source: JWTSource, agent: Agent) -> None:
    first = source.fetch("db")
    agent.issuer = NEXT
    agent.jwt_bundles.say(jwt_bundles({"cluster.local": NEXT, "partner.test": FEDERATED}))
    wait_for(lambda: source.status().updates == 2)
    second = source.fetch("db")
    assert second.token != first.token
    source.validate(second.token, "db")
    agent.jwt_bundles.say(jwt_bundles({"cluster.local": NEXT, "partner.test": ISSUER}))
    wait_for(lambda: source.status().updates == 3)
    assert source.fetch("db") is second  # other people's keys are no reason


class TestWaiting:
    def test_for_an_agent_that_comes_later(self, tmp_path: Path) -> None:
        agent = Agent(tmp_path / "agent.sock")
        with JWTSource(agent.address) as source:
            with pytest.raises(NotReady, match="see whether the agent runs"):
                source.wait_until_ready(timedelta(milliseconds=50))
            with pytest.raises(NotReady, match="no JWT bundles have arrived yet"):
                source.validate("x", "db")
            with agent:
                source.wait_until_ready(SOON)
                source.validate(agent.token(["db"]), "db")
                assert source.status().trouble is None

    async def test_in_an_event_loop(self, tmp_path: Path) -> None:
        agent = Agent(tmp_path / "agent.sock")
        async with JWTSource(agent.address) as source:
            with pytest.raises(NotReady):
                await source.ready(timedelta(milliseconds=50))
            waiting = asyncio.create_task(source.ready(SOON))
            with agent:
                await waiting
                assert (await source.fetch_async("db")).audiences == ("db",)

    def test_ends_with_the_source(self, agent: Agent) -> None:
        agent.jwt_bundles.hush()
        source = JWTSource(agent.address)
        waiting = threading.Thread(target=source.close)
        waiting.start()
        with pytest.raises(NotReady, match="closed"):
            source.wait_until_ready(SOON)
        waiting.join()
        for use in (source.bundles, lambda: source.fetch("db"), lambda: source.validate("x", "db")):
            with pytest.raises(NotReady, match="closed"):
                use()


def test_a_closed_source_serves_nothing_and_leaves_no_thread(agent: Agent) -> None:
    before = set(threading.enumerate())
    with JWTSource(agent.address) as source:
        source.wait_until_ready(SOON)
        source.fetch("db")
        assert "istio-auth Workload API" in {thread.name for thread in set(threading.enumerate()) - before}
    assert "istio-auth Workload API" not in {thread.name for thread in set(threading.enumerate()) - before}
    for use in (source.bundles, lambda: source.fetch("db")):
        with pytest.raises(NotReady, match="closed"):
            use()


def test_a_forked_child_waits_for_no_lock_that_a_thread_of_its_parent_held(source: JWTSource, agent: Agent) -> None:
    source.fetch("db")
    answers: list[object] = []

    def use() -> None:
        source.subscribe(lambda: None)
        answers.append(source.fetch("db").audiences)
        source.wait_until_ready(SOON)
        answers.append(source.status().ready)

    with source._cache._lock, source._changes._condition, source._changes._subscribers._lock:
        source._after_fork()  # as the child has it
        using = threading.Thread(target=use, daemon=True)
        using.start()
        using.join(60)
    assert answers == [("db",), True]


def test_an_agent_without_jwt_profile_is_told_as_such(tmp_path: Path) -> None:
    with FakeWorkloadAPI(tmp_path / "agent.sock") as api, JWTSource(api.address) as source:
        api.jwt_bundles.refuse(grpc.StatusCode.UNIMPLEMENTED, "JWT is disabled")
        wait_for(lambda: source.status().trouble)
        with pytest.raises(NotReady, match="JWT is disabled"):
            source.bundles()
        with pytest.raises(Exception, match="FetchJWTSVID"):
            source.fetch("db")


def test_an_answer_that_breaks_the_standard_is_passed_over(source: JWTSource, agent: Agent) -> None:
    for wrong in (b"\xff", messages.JWTBundlesResponse(), messages.JWTBundlesResponse(bundles={"x": b"{}"})):
        agent.jwt_bundles.say(wrong)
        wait_for(lambda: source.status().trouble)
        source.validate(agent.token(["db"]), "db")
        agent.jwt_bundles.say(jwt_bundles({"cluster.local": ISSUER, "partner.test": FEDERATED}))
        wait_for(lambda: source.status().trouble is None)
    assert source.status().updates == 1


def test_nothing_said_shows_a_token(source: JWTSource, agent: Agent, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    svid = source.fetch("db")
    told = f"{source!r} {source.status()!r} {svid!r} {caplog.text}"
    assert not [part for part in svid.token.split(".") if part in told]


def test_a_source_that_nobody_holds_ends_with_its_thread(agent: Agent) -> None:
    source = JWTSource(agent.address)
    source.wait_until_ready(SOON)
    gone = weakref.ref(source)
    del source
    gc.collect()
    wait_for(lambda: gone() is None)  # its thread holds it while it hands it an answer
    wait_for(lambda: agent.jwt_bundles.open == 0)


@pytest.mark.parametrize("kind", [JWTSource, WorkloadAPISource])
def test_a_source_that_is_garbage_waits_for_no_lock(agent: Agent, kind: type[JWTSource | WorkloadAPISource]) -> None:
    # Garbage is collected on any thread: even on one that somebody who holds a lock of ours waits for.
    held = [kind(agent.address)]
    gone = weakref.ref(held[0])

    def collect() -> None:
        held.clear()
        gc.collect()

    collecting = threading.Thread(target=collect)
    wait_for(lambda: agent.jwt_bundles.open or agent.x509.open)
    with dropping():
        collecting.start()
        collecting.join(60)
        assert not collecting.is_alive()
    wait_for(lambda: gone() is None)  # as above
    wait_for(lambda: agent.jwt_bundles.open == agent.x509.open == 0)


def wait_for(condition: Callable[[], object]) -> None:
    asyncio.run(until(condition))
