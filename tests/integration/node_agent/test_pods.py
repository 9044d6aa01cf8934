"""Callers in pods, from the agent's socket to the kubelet: what they earn, and that they never earn by less."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, contextmanager
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
import structlog

from istio_auth.registration import Registration, Selector
from istio_auth.spiffe_id import SpiffeID
from tests.fakes.ca import CAServer
from tests.fakes.certificate_client import FakeCA
from tests.fakes.clock import FakeClock
from tests.fakes.key_server import says, silent
from tests.fakes.pod_lister import PLACE, UID, PodLister, pod
from tests.fakes.running_agent import RunningAgent, registration
from tests.fakes.sds_client import SDSStream
from tests.fakes.waiting import until
from tests.integration.node_agent.test_admin import said
from tests.integration.node_agent.test_workload_api import WEB, at, names, state

SHOP_WEB = "spiffe://cluster.local/ns/shop/sa/web"
OF_THE_ACCOUNT = Registration(
    SpiffeID.parse(SHOP_WEB), frozenset(map(Selector.parse, ("k8s:ns:shop", "k8s:sa:web", "k8s:node:node-1")))
)
NOT_NOW = ("UNAVAILABLE", "the caller's pod is not known yet")


@pytest.fixture
async def lister(tmp_path: Path) -> AsyncIterator[PodLister]:
    async with PodLister(tmp_path) as lister:
        lister.pods = [pod()]
        yield lister


@pytest.fixture
async def agent(lister: PodLister, tmp_path: Path, clock: FakeClock) -> AsyncIterator[RunningAgent]:
    """An agent to which this very process is in a pod, or wherever `move` puts it."""
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(CAServer(FakeCA(clock)))
        server.register(
            account=OF_THE_ACCOUNT, host=registration("/web")
        )  # and that one is for any process of our user
        settings = lister.settings(wait=timedelta(seconds=60))
        agent = await stack.enter_async_context(RunningAgent(server, tmp_path, clock, kubernetes=settings))
        agent.give_token()
        agent.agent.identity.look_again()
        await agent.joined()
        await agent.served("/web", "/ns/shop/sa/web")
        move(agent, PLACE)
        yield agent


def move(agent: RunningAgent, group: str) -> None:
    """Put this process into a control group, as far as the agent sees."""
    folder = agent.folder / "proc" / str(os.getpid())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cgroup").write_text(f"0::/{group}\n")
    assert agent.agent.workloads.kubernetes is not None
    agent.agent.workloads.kubernetes._proc = folder.parent


async def served(agent: RunningAgent) -> list[str]:
    """The identities that this process is served."""
    async with at(agent.socket) as workload:
        return names(await state(workload.svids()))


@contextmanager
def impatient(agent: RunningAgent) -> Iterator[None]:
    """Callers do not wait long for the kubelet meanwhile."""
    assert agent.agent.workloads.kubernetes is not None
    pods = agent.agent.workloads.kubernetes.pods
    usual, pods._wait = pods._wait, timedelta(seconds=1)
    yield
    pods._wait = usual


async def refusal(agent: RunningAgent) -> tuple[str, str]:
    """Status and words that this process is refused with."""
    async with at(agent.socket) as workload:
        return await workload.refusal("FetchX509SVID")


async def not_now(agent: RunningAgent) -> bool:
    """Whether this process is refused because its pod is not known."""
    with impatient(agent):
        return await refusal(agent) == NOT_NOW


async def test_a_caller_in_a_pod_has_its_service_accounts_identity_and_one_outside_has_not(agent: RunningAgent) -> None:
    assert await served(agent) == [SHOP_WEB, WEB]
    move(agent, "user.slice")
    assert await served(agent) == [WEB]


async def test_a_caller_in_a_pod_is_refused_for_now_while_its_pod_is_not_known_and_earns_nothing_by_less(
    agent: RunningAgent, lister: PodLister
) -> None:
    await lister.stop()
    assert await not_now(agent)
    move(agent, "user.slice")
    assert await served(agent) == [WEB]  # for which no kubelet is needed
    move(agent, PLACE)
    await lister.start()
    lister.pods = []
    assert await not_now(agent)
    lister.pods = [pod()]
    assert await served(agent) == [SHOP_WEB, WEB]


async def test_a_sidecar_in_a_pod_that_is_not_known_comes_again(agent: RunningAgent, lister: PodLister) -> None:
    lister.answer = says("", status=403)
    with impatient(agent), pytest.raises(grpc.aio.AioRpcError) as caught:
        async with SDSStream(agent.socket, "default") as stream:
            await stream.receive()
    assert (caught.value.code().name, caught.value.details()) == NOT_NOW
    lister.answer = None
    async with SDSStream(agent.socket, "default") as stream:
        await stream.receive()
    assert str(stream.svid().id) == SHOP_WEB


async def test_a_caller_whose_pod_has_no_registration_is_told_with_its_selectors_and_the_nearest(
    agent: RunningAgent, lister: PodLister
) -> None:
    agent.server.register(account=OF_THE_ACCOUNT)
    await until(lambda: len(agent.agent.cache.snapshot.registrations) == 1)
    lister.pods = [pod(account="db", labels={"app": "db"})]
    with structlog.testing.capture_logs() as logs:
        assert await refusal(agent) == ("PERMISSION_DENIED", "no identity issued")
    (entry,) = (each for each in logs if "no registration fits" in each["event"])
    assert {"k8s:sa:db", "k8s:ns:shop", "k8s:label:app=db", f"k8s:pod-uid:{UID}"} <= set(entry["selectors"])
    assert (entry["nearest"], entry["missing"]) == (SHOP_WEB, ["k8s:sa:web"])
    found = json.loads(await said(agent, "explain", "--pid", str(os.getpid()), "--output", "json"))
    assert set(entry["selectors"]) - {"socket:main"} == set(found["selectors"])
    assert found["nearest"] == {"spiffe_id": SHOP_WEB, "missing": ["k8s:sa:web"]}


async def test_explain_and_status_tell_why_a_pod_is_not_known(agent: RunningAgent, lister: PodLister) -> None:
    words = ("explain", "--pid", str(os.getpid()))
    lister.answer = says("", status=403)
    with impatient(agent):
        text = await said(agent, *words)
    assert "status 403: our account needs `get` on nodes/pods" in text
    assert SHOP_WEB not in text.partition("nothing")[0]
    assert "status 403" in (await said(agent, "status")).partition("Kubelet")[2]
    lister.answer = None
    text = await said(agent, *words)
    assert SHOP_WEB in text
    assert "k8s:pod:web-0" in text
    assert "status 403" not in text + await said(agent, "status")


async def test_callers_that_wait_for_a_slow_kubelet_keep_nobody_else_waiting(
    agent: RunningAgent, lister: PodLister
) -> None:
    lister.answer = silent
    waiting = [asyncio.create_task(served(agent)) for _ in range(20)]
    await until(lambda: lister.asked)
    move(agent, "user.slice")
    assert await served(agent) == [WEB]
    assert not all(each.done() for each in waiting)
    lister.answer = None
    await lister.stop()
    await lister.start()
    assert [SHOP_WEB, WEB] in await asyncio.gather(*waiting)
