"""The agent's own SVID: got, kept, renewed, and got back."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from istio_auth.errors import MissingError, NotAuthenticated, NotReady
from istio_auth.keys import same_key
from istio_auth.pem import write_private_key
from istio_auth.sources.memory import MemorySource
from istio_auth.spiffe_id import SpiffeID, TrustDomain
from node_agent.backoff import Backoff
from node_agent.identity.enrolment import Enrolment, Token, Way, ways
from node_agent.identity.identity import LONGEST_WAIT, Identity
from node_agent.identity.state import StateFolder
from node_agent.metrics import Metrics
from node_agent.trust import Trust, at_start
from tests.fakes.certificate_client import FakeCA, Fault, away
from tests.fakes.clock import FakeClock

LOCAL = TrustDomain("cluster.local")
ME = SpiffeID.for_agent(LOCAL, "node-1")
FIRST = "token-1"
HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)


class Agent:
    """An agent that can be killed and started again on the same folder, under the hand of the test."""

    def __init__(self, clock: FakeClock, folder: Path) -> None:
        self.clock, self.seconds = clock, 0.0
        self.ca = FakeCA(clock)
        self.state = StateFolder(folder / "agent")
        self.token: str | None = None
        self.start()

    def start(self) -> None:
        async def keep(_: object) -> None:
            pass

        self.trust = Trust(LOCAL, at_start(self.ca.root.bundle(), None), keep)
        self.source = MemorySource()
        self.metrics = Metrics()
        self.node_key = self.state.node_key()
        enrolment = Enrolment(
            ME,
            self.node_key,
            state=self.state,
            trust=self.trust,
            proven=self.ca.proven(),
            unproven=self.ca.unproven(),
            read_token=self.read_token,
            ttl=None,
            clock=self.clock,
        )
        self.identity = Identity(
            enrolment,
            state=self.state,
            source=self.source,
            trust=self.trust,
            svid=self.state.svid(ME),
            clock=self.clock,
            metrics=self.metrics,
            draw=lambda: 0.5,
            backoff=Backoff(monotonic=lambda: self.seconds, draw=lambda: 0.5),
        )

    def read_token(self) -> str:
        if self.token is None:
            raise MissingError("nobody gave one")
        return self.token

    def give_token(self, token: str = FIRST) -> None:
        self.token = token
        self.ca.tokens.add(token)

    async def enrol(self) -> None:
        self.give_token()
        await self.identity.step()
        assert self.identity.lives()
        self.ca.calls.clear()

    async def pass_time(self, duration: timedelta) -> None:
        end = self.seconds + duration.total_seconds()
        while True:
            wait = min((await self.identity.step()).total_seconds(), end - self.seconds)
            if self.seconds >= end:
                return
            self.seconds += wait
            self.clock.advance(timedelta(seconds=wait))


def full(_path: Path, _content: bytes) -> None:
    raise NotReady("disk full")


@pytest.fixture
def agent(clock: FakeClock, tmp_path: Path) -> Agent:
    return Agent(clock, tmp_path)


@pytest.mark.parametrize(
    ("lives", "token", "expected"),
    [
        (True, Token.NONE, (Way.RENEW, Way.RECOVER)),
        (False, Token.UNUSED, (Way.ENROL, Way.RECOVER)),
        (False, Token.USED, (Way.RECOVER, Way.ENROL)),
        (False, Token.NONE, (Way.RECOVER,)),
    ],
)
def test_the_ways_to_an_svid(lives: bool, token: Token, expected: tuple[Way, ...]) -> None:
    assert ways(lives=lives, token=token) == expected


async def test_an_agent_enrols_with_its_node_key(agent: Agent) -> None:
    assert not agent.source.x509_context().svids
    agent.give_token()
    await agent.identity.step()
    svid = agent.source.svid()
    assert svid.id == ME
    assert same_key(svid.leaf.public_key(), agent.node_key.public_key())  # type: ignore[arg-type]  # P-256
    assert agent.ca.calls == ["enrol"]


async def test_it_renews_at_half_of_its_life_with_a_new_key_each_time(agent: Agent) -> None:
    await agent.enrol()
    keys = set()
    for _ in range(3):
        await agent.pass_time(HOUR * 0.55)
        keys.add(agent.source.svid().key_pem())
    assert len(keys) == 3
    assert agent.ca.calls == ["sign"] * 3


async def test_a_restart_needs_no_token_and_asks_for_nothing(agent: Agent) -> None:
    await agent.enrol()
    before = agent.source.svid()
    agent.token = None
    agent.start()
    assert agent.source.svid().chain == before.chain
    await agent.pass_time(MINUTE)
    assert agent.ca.calls == []


async def test_a_lapsed_agent_comes_back_with_its_node_key(agent: Agent) -> None:
    await agent.enrol()
    agent.ca.failure = away()
    await agent.pass_time(3 * HOUR)
    assert not agent.identity.lives()
    assert agent.metrics.registry.get_sample_value("istio_auth_agent_svids_lapsed_total", {"kind": "agent"}) == 1
    agent.ca.failure = None
    agent.ca.calls.clear()
    await agent.pass_time(2 * MINUTE)
    assert agent.identity.lives()
    assert agent.ca.calls == ["challenge /agent/node-1", "recover"]
    assert agent.source.svid().key_pem() != write_private_key(agent.node_key)


async def test_an_agent_killed_between_enrolment_and_its_svid_on_disk_comes_back(agent: Agent) -> None:
    await agent.enrol()
    (agent.state.path / "svid.pem").unlink()
    (agent.state.path / "spent-token").unlink()
    agent.start()
    await agent.identity.step()
    assert agent.identity.lives()
    assert agent.ca.calls == ["enrol", "challenge /agent/node-1", "recover"]


async def test_a_used_token_is_not_shown_again_before_the_node_key(agent: Agent) -> None:
    await agent.enrol()
    (agent.state.path / "svid.pem").unlink()
    agent.start()
    await agent.identity.step()
    assert agent.identity.lives()
    assert agent.ca.calls == ["challenge /agent/node-1", "recover"]


async def test_a_new_token_brings_back_whom_the_ca_has_forgotten(agent: Agent) -> None:
    await agent.enrol()
    agent.clock.advance(2 * HOUR)
    agent.ca.node_keys.clear()
    await agent.identity.step()
    assert not agent.identity.lives()
    agent.give_token("token-2")
    agent.identity.look_again()
    await agent.identity.step()
    assert agent.identity.lives()


async def test_a_foreign_ca_without_recovery_is_shown_its_token_again(agent: Agent) -> None:
    await agent.enrol()
    agent.ca.offers_node_service = False
    agent.clock.advance(2 * HOUR)
    agent.ca.tokens.add("token-1")
    await agent.identity.step()
    assert agent.identity.lives()


async def test_a_ca_that_no_longer_knows_the_svid_is_shown_the_node_key(agent: Agent) -> None:
    await agent.enrol()
    agent.ca.refusals[ME] = NotAuthenticated("issued by a CA of another time")
    agent.clock.advance(HOUR * 0.6)
    await agent.identity.step()
    assert agent.ca.calls == ["sign", "challenge /agent/node-1", "recover"]


async def test_a_ca_that_is_away_is_not_asked_in_another_way(agent: Agent) -> None:
    await agent.enrol()
    agent.ca.failure = away()
    agent.clock.advance(HOUR * 0.6)
    await agent.identity.step()
    assert agent.ca.calls == ["sign"]


async def test_without_token_or_enrolment_one_line_says_why_and_how_to_come_by_a_token(agent: Agent) -> None:
    with capture_logs() as lines:
        await agent.identity.step()
    (line,) = lines
    assert "the node key was refused (" in line["reason"]
    assert "there is no join token to enrol with (nobody gave one)" in line["reason"]
    assert "`ca-cli token create node-1`" in line["reason"]
    agent.give_token()
    await agent.pass_time(MINUTE)
    assert agent.identity.lives()


async def test_a_token_that_the_ca_refuses_is_told_in_the_same_line_as_what_became_of_the_node_key(
    agent: Agent,
) -> None:
    agent.token = "unknown"
    with capture_logs() as lines:
        await agent.identity.step()
    (line,) = lines
    assert "the join token was refused (" in line["reason"]
    assert "the node key was refused (" in line["reason"]
    assert "no join token" not in line["reason"]


async def test_what_keeps_an_agent_from_its_work_is_told_with_its_reason(agent: Agent) -> None:
    def problem() -> str | None:
        return agent.identity.problem

    assert problem() == "no SVID of our own yet"
    agent.ca.failure = away()
    await agent.identity.step()
    assert problem() == f"no SVID of our own yet: {away()}"
    agent.ca.failure = None
    agent.give_token()
    await agent.pass_time(MINUTE)
    assert problem() is None
    agent.ca.failure = away()
    await agent.pass_time(2 * HOUR)
    assert problem() == f"our own SVID has ended: {away()}"


async def test_without_token_or_enrolment_the_agent_keeps_asking_ever_more_rarely(agent: Agent) -> None:
    await agent.pass_time(10 * MINUTE)
    assert not agent.identity.lives()
    recoveries = agent.ca.calls.count("recover")
    assert 10 <= recoveries <= 25
    agent.give_token()
    await agent.pass_time(MINUTE)
    assert agent.identity.lives()


async def test_a_token_that_comes_later_is_used_at_once_and_a_bad_one_not_again_and_again(agent: Agent) -> None:
    await agent.pass_time(10 * MINUTE)
    agent.token = "unknown"
    await agent.identity.look_for_token()
    await agent.identity.step()
    assert not agent.identity.lives()
    await agent.identity.look_for_token()
    asked = len(agent.ca.calls)
    await agent.identity.step()
    assert len(agent.ca.calls) == asked  # it waits
    agent.token = None
    await agent.pass_time(10 * MINUTE)
    agent.give_token()
    await agent.identity.step()
    assert not agent.identity.lives()
    await agent.identity.look_for_token()
    await agent.identity.step()
    assert agent.identity.lives()


@pytest.mark.parametrize("fault", [fault for fault in Fault if fault is not Fault.NONE], ids=lambda each: each.value)
async def test_a_bad_answer_never_replaces_the_svid(agent: Agent, fault: Fault) -> None:
    await agent.enrol()
    good = agent.source.svid()
    agent.ca.fault = fault
    await agent.pass_time(HOUR * 0.9)
    assert agent.source.svid() is good
    agent.ca.fault = Fault.NONE
    await agent.pass_time(2 * MINUTE)
    assert agent.source.svid() is not good


@pytest.mark.parametrize("life", ["the first", "a renewal", "after a lapse"])
async def test_an_svid_that_could_not_be_written_is_used_and_written_as_soon_as_that_is_possible(
    agent: Agent, monkeypatch: pytest.MonkeyPatch, life: str
) -> None:
    if life != "the first":
        await agent.enrol()
        agent.clock.advance(HOUR * (0.6 if life == "a renewal" else 2))
    before = agent.identity.svid
    with monkeypatch.context() as broken:
        broken.setattr("node_agent.identity.state.atomic_write", full)
        agent.give_token("token-2")
        with capture_logs() as lines:
            await agent.pass_time(10 * MINUTE)
        assert agent.identity.lives()
        assert agent.identity.svid is not before
        assert len([call for call in agent.ca.calls if call != "challenge /agent/node-1"]) == 1  # the CA, once
        agent.state.catch_up()
        assert [line["reason"] for line in lines if "could not be written" in line["event"]] == ["disk full"]
    assert "disk full" in str(agent.state.trouble)
    agent.state.catch_up()
    assert not agent.state.trouble
    found = agent.state.svid(ME)
    assert found is not None
    assert found.chain == agent.source.svid().chain


async def test_who_is_killed_while_the_disk_is_full_comes_back_by_the_node_key(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent.give_token()
    with monkeypatch.context() as broken:
        broken.setattr("node_agent.identity.state.atomic_write", full)
        await agent.identity.step()
        agent.state = StateFolder(agent.state.path)
        agent.start()  # the node key was there before
        await agent.identity.step()
        assert agent.identity.lives()
    assert agent.ca.calls == ["enrol", "enrol", "challenge /agent/node-1", "recover"]


async def test_a_change_of_trust_reaches_what_we_present(agent: Agent) -> None:
    await agent.enrol()
    await agent.trust.take([agent.ca.root.bundle(sequence=9)])
    assert agent.source.bundle(LOCAL).sequence == 9
    assert agent.source.svid().id == ME


async def test_a_clock_set_back_with_the_cas_is_healed_by_one_renewal(agent: Agent) -> None:
    await agent.enrol()
    agent.clock.advance(-timedelta(minutes=30))
    await agent.pass_time(MINUTE)
    assert agent.source.svid().not_before <= agent.clock.now()
    assert agent.ca.calls == ["sign"]


async def test_a_clock_set_back_on_this_machine_alone_makes_no_storm_and_loses_nothing(agent: Agent) -> None:
    await agent.enrol()
    good = agent.source.svid()
    agent.ca.clock = FakeClock(agent.clock.now())
    agent.clock.advance(-timedelta(days=1))
    await agent.pass_time(HOUR)
    assert agent.source.svid() is good
    assert len(agent.ca.calls) < 100


async def test_a_clock_that_is_ahead_of_the_cas_makes_no_storm(agent: Agent) -> None:
    agent.ca.clock = FakeClock(agent.clock.now() - timedelta(minutes=40))
    await agent.enrol()
    await agent.pass_time(5 * MINUTE)
    assert agent.ca.calls == []


async def test_a_clock_set_forward_a_day_and_back_loses_nothing_even_while_the_ca_is_away(agent: Agent) -> None:
    await agent.enrol()
    good, told = agent.source.svid(), []
    agent.identity.subscribe(lambda: told.append(agent.identity.lives()))
    agent.ca.failure = away()
    for _ in range(2):
        agent.clock.advance(timedelta(days=1))
        await agent.pass_time(MINUTE)
        assert "connection refused" in str(agent.identity.trouble)
        agent.clock.advance(-timedelta(days=1))
        await agent.pass_time(MINUTE)
        assert agent.identity.lives()
        assert not agent.identity.trouble
        assert agent.identity.failing_for is None
    assert agent.source.svid() is good
    assert told == [False, True] * 2


async def test_it_is_known_since_when_it_could_not_be_renewed(agent: Agent) -> None:
    await agent.enrol()
    agent.ca.failure = away()
    agent.clock.advance(HOUR * 0.6)
    await agent.pass_time(10 * MINUTE)
    agent.identity.look_again()
    assert agent.identity.failing_for == 10 * MINUTE
    agent.ca.failure = None
    await agent.identity.step()
    assert agent.identity.failing_for is None


async def test_no_wait_is_negative_or_longer_than_it_takes_to_notice_a_jump(agent: Agent) -> None:
    await agent.enrol()
    for jump in (HOUR, -9 * HOUR, timedelta(days=3)):
        agent.clock.advance(jump)
        assert timedelta() <= await agent.identity.step() <= LONGEST_WAIT
