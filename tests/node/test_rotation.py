"""Certificates that end within a minute, as pods under a kubelet see them renewed, and the tokens for it."""

from __future__ import annotations

import asyncio

from tests.cluster.waiting import eventually
from tests.node.installation import Installed
from tests.node.node import Node
from tests.node.pods import MOUNTED, Pods, PodSpec

SOCKET = f"{MOUNTED}/agent.sock"


async def test_programs_in_pods_see_each_new_certificate_with_its_key(pods: Pods, installed: Installed) -> None:
    where = {"files": MOUNTED, "sockets": SOCKET}
    running = [await pods.start(PodSpec(form, {"form": form, "ttl": "16s"})) for form in where]
    followed = await asyncio.gather(
        *(pod.told("follow", place, 3) for pod, place in zip(running, where.values(), strict=True))
    )
    assert [len({each["serial"] for each in told}) for told in followed] == [3, 3]
    assert len({each["spiffe_id"] for told in followed for each in told}) == 1


async def test_an_agent_that_lost_its_tokens_is_brought_them_and_a_kubelet_that_starts_anew_brings_others(
    node: Node, pods: Pods, installed: Installed
) -> None:
    pod = await pods.start(PodSpec(attributes={"form": "files"}))

    async def token_ends() -> str | None:
        told = await installed.volume_of(f"{pods.namespace}/{pod.name}")
        return str(told["token_ends"]) if told.get("token_ends") else None

    first = await eventually(token_ends)
    await asyncio.to_thread(installed.agent.kill)
    await asyncio.to_thread(installed.agent.start)
    assert await eventually(token_ends) == first  # the kubelet keeps a token for most of its life
    pid = await pod.pid()
    await asyncio.to_thread(node.kubelet.kill)
    await asyncio.to_thread(node.kubelet.start)

    async def look() -> bool:
        return (await token_ends() or "") > first

    await eventually(look, within=120)
    assert await pod.pid() == pid
