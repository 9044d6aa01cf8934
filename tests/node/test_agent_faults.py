"""An agent that is restarted, killed or away, and a CA that is away: what pods of the node notice of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.cluster.server import Server
from tests.node.installation import Installed
from tests.node.pods import MOUNTED, Pods, PodSpec

SOCKET = f"{MOUNTED}/agent.sock"
WHERE = {"files": MOUNTED, "sockets": SOCKET}


@asynccontextmanager
async def away(server: Server, *, killed: bool = False) -> AsyncIterator[None]:
    """Without a server, which is back afterwards."""
    await asyncio.to_thread(server.kill if killed else server.end)
    try:
        yield
    finally:
        await asyncio.to_thread(server.start)


@pytest.mark.parametrize("killed", [False, True], ids=["ended", "killed"])
async def test_pods_are_served_again_by_an_agent_that_starts_anew(
    pods: Pods, installed: Installed, killed: bool
) -> None:
    running = {form: await pods.start(PodSpec(name=form, attributes={"form": form, "ttl": "30s"})) for form in WHERE}
    pids = [await pod.pid() for pod in running.values()]
    async with away(installed.agent, killed=killed):
        (told,) = await running["files"].told("who", MOUNTED)  # files need no agent
    for form, pod in running.items():
        last = (await pod.told("follow", WHERE[form], 2))[-1]
        assert last["spiffe_id"] == told["spiffe_id"]
    assert [await pod.pid() for pod in running.values()] == pids


async def test_an_agent_that_starts_while_the_ca_is_away_serves_pods_what_it_had(
    pods: Pods, installed: Installed
) -> None:
    pod = await pods.start()
    (before,) = await pod.told("who", SOCKET)
    async with away(installed.ca):
        async with away(installed.agent, killed=True):
            pass
        assert await pod.told("who", SOCKET) == [before]


async def test_a_pod_that_starts_while_the_agent_is_away_waits_for_it(pods: Pods, installed: Installed) -> None:
    async with away(installed.agent):
        pod = await pods.create()
        await pod.is_told("FailedMount")
    await pod.runs()
    await pod.told("who", SOCKET)


async def test_a_pod_that_starts_while_the_ca_is_away_waits_and_is_told_for_what(
    pods: Pods, installed: Installed
) -> None:
    async with away(installed.ca):
        pod = await pods.create()
        told = await pod.is_told("there is no certificate for the pod")
        print(told)
        assert not pod.is_mounted()
    await pod.runs()
    await pod.told("who", SOCKET)


async def test_a_pod_that_is_deleted_while_the_agent_is_away_goes_when_it_is_back(
    pods: Pods, installed: Installed
) -> None:
    pod = await pods.start()
    async with away(installed.agent, killed=True):
        await pods.admin.delete(pod.path)
    await pod.is_gone()
    assert not pod.is_mounted()
