"""The stream between agent and CA."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from istio_auth.errors import ConfigurationError, NotReady
from istio_auth.registration import Registration, Selector
from istio_auth.spiffe_id import SpiffeID, TrustDomain
from node_agent.backoff import Backoff
from node_agent.ca_client.port import News
from node_agent.metrics import Metrics
from node_agent.sync import ASK_AGAIN, Consumers, Sync
from node_agent.trust import Trust, at_start
from node_agent.workloads.registrations import Delta
from tests.fakes.authority import FakeAuthority
from tests.fakes.certificate_client import FakeCA
from tests.fakes.clock import FakeClock
from tests.fakes.waiting import until

LOCAL = TrustDomain("cluster.local")
UID = frozenset({Selector("unix", "uid:1")})
A, B = (Registration(SpiffeID(LOCAL, path), UID) for path in ("/a", "/b"))


class Agent:
    def __init__(self, clock: FakeClock) -> None:
        async def keep(_: object) -> None:
            pass

        self.ca = FakeCA(clock)
        self.trust = Trust(LOCAL, at_start(self.ca.root.bundle(sequence=None), None), keep)
        self.registered: list[tuple[Registration, ...]] = []
        self.consumers = Consumers()
        self.metrics = Metrics()
        self.is_ready = True
        self.sync = Sync(
            self.ca.proven(),
            trust=self.trust,
            ready=lambda: self.is_ready,
            consumers=lambda: self.consumers,
            registered=self.registered.append,
            metrics=self.metrics,
            backoff=Backoff(first=timedelta(milliseconds=2), longest=timedelta(milliseconds=4)),
        )


@pytest.fixture
async def agent(clock: FakeClock) -> AsyncIterator[Agent]:
    agent = Agent(clock)
    running = asyncio.create_task(agent.sync.run())
    yield agent
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_registrations_and_bundles_come_down(agent: Agent) -> None:
    agent.ca.news.put_nowait(agent.ca.register(b=B, a=A))
    await until(lambda: agent.registered)
    assert agent.registered == [(A, B)]
    assert agent.trust.own.sequence == 1
    assert agent.sync.connected
    agent.ca.news.put_nowait(News((), Delta("epoch", 1, 2, {}, frozenset({"a"}))))
    await until(lambda: len(agent.registered) == 2)
    assert agent.registered[-1] == (B,)


async def test_what_is_held_and_who_has_taken_it_goes_up(agent: Agent) -> None:
    await until(lambda: agent.ca.reports)
    assert (agent.ca.reports[0].epoch, agent.ca.reports[0].revision) == ("", 0)
    agent.ca.news.put_nowait(agent.ca.register(a=A))
    await until(lambda: agent.ca.reports[-1].revision == 1)
    agent.consumers = Consumers(3, 2, ("laggard",))
    agent.sync.report()
    await until(lambda: agent.ca.reports[-1].consumers == 3)
    last = agent.ca.reports[-1]
    assert (last.epoch, last.bundle_sequence, last.consumers_current, last.laggards) == ("epoch", 1, 2, ("laggard",))


async def test_a_stream_that_ends_is_opened_again_where_it_left_off(agent: Agent) -> None:
    agent.ca.news.put_nowait(agent.ca.register(a=A))
    await until(lambda: agent.registered)
    agent.ca.news.put_nowait(NotReady("the CA stops"))
    await until(lambda: agent.ca.calls == ["sync", "sync"])
    await until(lambda: agent.ca.reports[-1].revision == 1 and agent.ca.reports[-1].epoch == "epoch")
    assert agent.registered == [(A,)]


async def test_an_agent_that_lacks_nothing_is_in_sync_again_by_an_empty_answer(agent: Agent) -> None:
    agent.ca.news.put_nowait(agent.ca.register(a=A))
    await until(lambda: agent.registered)
    agent.ca.news.put_nowait(NotReady("the CA stops"))
    await until(lambda: agent.ca.calls == ["sync", "sync"] and agent.sync.trouble == "the CA stops")
    assert not agent.sync.connected
    agent.ca.news.put_nowait(News())
    await until(lambda: agent.sync.connected)
    assert (agent.sync.trouble, agent.sync.failing_for) == (None, None)


async def test_a_delta_that_does_not_follow_makes_the_agent_ask_for_everything(agent: Agent) -> None:
    agent.ca.news.put_nowait(agent.ca.register(a=A))
    await until(lambda: agent.registered)
    agent.ca.news.put_nowait(News((), Delta("epoch", 7, 8, {"b": B})))
    await until(lambda: len(agent.ca.calls) == 2)
    await until(lambda: (agent.ca.reports[-1].epoch, agent.ca.reports[-1].revision) == ("", 0))
    assert agent.registered == [(A,)]  # what was held is served on meanwhile


async def test_a_bundle_that_goes_back_ends_the_stream_and_is_not_taken(agent: Agent) -> None:
    agent.ca.news.put_nowait(News((agent.ca.root.bundle(sequence=5),)))
    await until(lambda: agent.trust.own.sequence == 5)
    agent.ca.news.put_nowait(News((FakeAuthority().bundle(sequence=4),)))
    await until(lambda: len(agent.ca.calls) == 2)
    assert agent.trust.own == agent.ca.root.bundle(sequence=5)
    assert agent.metrics.registry.get_sample_value("istio_auth_agent_bundles_refused_total") == 1


async def test_a_bad_registration_is_counted_and_takes_no_other_with_it(agent: Agent) -> None:
    agent.ca.news.put_nowait(News((), Delta("epoch", 0, 1, {"a": A, "x": ConfigurationError("bad")})))
    await until(lambda: agent.registered)
    assert agent.registered == [(A,)]
    assert agent.metrics.registry.get_sample_value("istio_auth_agent_bad_registrations_total") == 1


async def test_nothing_is_opened_before_we_can_prove_ourselves(clock: FakeClock) -> None:
    agent = Agent(clock)
    agent.is_ready = False
    running = asyncio.create_task(agent.sync.run())
    await asyncio.sleep(0)
    assert agent.ca.calls == []
    agent.is_ready = True
    agent.sync.look_again()
    await until(lambda: agent.ca.calls == ["sync"])
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_ca_without_the_stream_is_asked_again_now_and_then(clock: FakeClock) -> None:
    agent = Agent(clock)
    agent.ca.offers_node_service = False
    assert await agent.sync.step() == ASK_AGAIN
    assert agent.sync.not_offered
