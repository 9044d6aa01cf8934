"""Pods of one node that talk mutual TLS with what the driver gave them, and refuse whoever has another identity."""

from __future__ import annotations

import pytest

from tests.cluster.running_ca import account_id
from tests.node.installation import Installed
from tests.node.pods import MOUNTED, Pods, PodSpec, inside

SOCKET = f"{MOUNTED}/agent.sock"


@pytest.mark.parametrize(("form", "where"), [("files", MOUNTED), ("sockets", SOCKET)])
async def test_two_pods_know_each_other_and_each_refuses_a_third(
    pods: Pods, installed: Installed, form: str, where: str
) -> None:
    attributes = {"form": form}
    server, client, third = (account_id(pods.namespace, name) for name in ("server", "client", "third"))
    serving = await pods.start(
        PodSpec("server", attributes, service_account="server", command=inside("serve", where, client))
    )
    impostor = await pods.start(
        PodSpec("impostor", attributes, service_account="third", command=inside("serve", where, client))
    )
    caller = await pods.start(PodSpec("client", attributes, service_account="client"))
    stranger = await pods.start(PodSpec("stranger", attributes, service_account="third"))
    for each in (serving, impostor):  # a pod is ready when its container runs
        await each.says("listening")
    assert await caller.told("call", where, await serving.address(), server) == [{"greeted": client}]
    (told,) = await caller.told("call", where, await impostor.address(), server)
    assert f"{third} is refused: welcome is {server}" in told["refused"]
    (told,) = await stranger.told("call", where, await serving.address(), server)
    assert not told.get("greeted")
    await serving.says(f"{third} is refused: welcome is {client}")
