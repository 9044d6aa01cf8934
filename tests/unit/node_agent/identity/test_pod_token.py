"""An agent on Kubernetes gets its own SVID by the token of its pod, as it stands in the file at that moment."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from istio_auth.errors import ConfigurationError, NotAuthenticated, NotAuthorized, NotReady
from istio_auth.sources.memory import MemorySource
from istio_auth.spiffe_id import SpiffeID, TrustDomain
from istio_auth.svid import X509SVID
from node_agent.backoff import Backoff
from node_agent.ca_client.answer import BadAnswer
from node_agent.identity.identity import Identity
from node_agent.identity.pod_token import PodToken, read_projected_token
from node_agent.identity.state import StateFolder
from node_agent.metrics import Metrics
from node_agent.trust import Trust, at_start
from tests.fakes.certificate_client import FakeCA, away
from tests.fakes.clock import FakeClock

LOCAL = TrustDomain("cluster.local")
ME = SpiffeID.for_agent(LOCAL, "node-1")
HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)


class Agent:
    """An agent in a pod, whose token the test renews as a kubelet does."""

    def __init__(self, clock: FakeClock, folder: Path) -> None:
        self.clock, self.seconds, self.folder = clock, 0.0, folder
        self.ca, self.path = FakeCA(clock), folder / "token"

        async def keep(_: object) -> None:
            pass

        trust = Trust(LOCAL, at_start(self.ca.root.bundle(), None), keep)
        self.way = PodToken(ME, self.path, client=self.ca.unproven(), trust=trust, ttl=None, clock=clock)
        state = StateFolder(folder / "state")
        self.identity = Identity(
            self.way,
            state=state,
            source=MemorySource(),
            trust=trust,
            svid=state.svid(ME),
            clock=clock,
            metrics=Metrics(),
            draw=lambda: 0.5,
            backoff=Backoff(monotonic=lambda: self.seconds, draw=lambda: 0.5),
        )

    def project(self, token: str, *, good_for: SpiffeID | None = ME) -> None:
        """Put a token into the file; those before it are no good any more."""
        self.path.write_text(token)
        self.ca.pod_tokens = {} if good_for is None else {token: good_for}

    async def pass_time(self, duration: timedelta) -> None:
        end = self.seconds + duration.total_seconds()
        while True:
            wait = min((await self.identity.step()).total_seconds(), end - self.seconds)
            if self.seconds >= end:
                return
            self.seconds += wait
            self.clock.advance(timedelta(seconds=wait))


@pytest.fixture
def agent(clock: FakeClock, tmp_path: Path) -> Agent:
    return Agent(clock, tmp_path)


def held(agent: Agent) -> X509SVID:
    assert agent.identity.svid is not None
    return agent.identity.svid


async def test_it_gets_its_svid_by_the_token_and_each_later_one_by_the_token_of_that_moment(agent: Agent) -> None:
    serials = set()
    for number in range(3):
        agent.project(f"token-{number}")
        await agent.pass_time(HOUR * 0.55)
        serials.add(held(agent).leaf.serial_number)
    assert len(serials) == 3
    assert set(agent.ca.calls) == {"enrol"}  # never by the SVID before


async def test_a_lapsed_agent_is_back_by_itself_as_soon_as_the_ca_is(agent: Agent) -> None:
    agent.project("first")
    await agent.pass_time(MINUTE)
    agent.ca.failure = away()
    await agent.pass_time(3 * HOUR)
    assert not agent.identity.lives()
    agent.project("later")  # the kubelet went on meanwhile
    agent.ca.failure = None
    await agent.pass_time(MINUTE)
    assert agent.identity.lives()


async def test_no_file_of_its_state_brings_it_back_so_none_is_needed(agent: Agent, clock: FakeClock) -> None:
    agent.project("first")
    await agent.pass_time(MINUTE)
    assert {path.name for path in (agent.folder / "state").iterdir()} == {"svid.pem"}  # and no node key
    (agent.folder / "state" / "svid.pem").unlink()
    again = Agent(clock, agent.folder)
    again.project("second")
    await again.pass_time(MINUTE)
    assert again.identity.lives()


async def test_a_token_that_is_not_there_yet_is_waited_for(agent: Agent) -> None:
    with pytest.raises(NotReady, match="no service-account token"):
        await agent.way.obtain(lives=False)
    assert agent.ca.calls == []
    await agent.pass_time(MINUTE)
    agent.project("token")
    await agent.pass_time(MINUTE)
    assert agent.identity.lives()


async def test_a_refusal_leaves_what_is_held_and_the_next_token_is_tried(agent: Agent) -> None:
    agent.project("good")
    await agent.pass_time(MINUTE)
    before = held(agent)
    agent.project("expired", good_for=None)
    with pytest.raises(NotAuthenticated):
        await agent.way.obtain(lives=True)
    await agent.pass_time(HOUR * 0.7)
    assert held(agent) is before
    assert "expired" not in str(agent.identity.trouble)  # the token itself
    agent.project("good-again")
    await agent.pass_time(2 * MINUTE)
    assert held(agent) is not before


async def test_an_svid_of_another_node_is_not_taken(agent: Agent) -> None:
    agent.project("token", good_for=SpiffeID.for_agent(LOCAL, "node-2"))
    with pytest.raises(BadAnswer, match="node-2"):
        await agent.way.obtain(lives=False)
    agent.project("token")
    assert (await agent.way.obtain(lives=False)).id == ME


async def test_a_refusal_of_this_one_request_is_told_as_it_is(agent: Agent) -> None:
    agent.project("token")
    agent.ca.pod_tokens = {"token": ME}
    agent.ca.refusals[ME] = NotAuthorized("not on this node")
    with pytest.raises(NotAuthorized):
        await agent.way.obtain(lives=False)
    assert not await agent.way.has_news()


@pytest.mark.parametrize("content", ["", "  \n", "two words", "snowman ☃"])
def test_what_is_no_token_is_never_shown_to_anybody(tmp_path: Path, content: str) -> None:
    (tmp_path / "token").write_text(content)
    with pytest.raises(ConfigurationError, match="holds no token"):
        read_projected_token(tmp_path / "token")
    (tmp_path / "token").write_text("a.b.c\n")
    assert read_projected_token(tmp_path / "token") == "a.b.c"
