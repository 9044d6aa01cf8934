"""The agent in a pod, as the DaemonSet's manifest has it: its rights, and what it does with them."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator

import pytest

from tests.cluster.client import JSON, Client
from tests.cluster.manifests import of_kind, rendered
from tests.cluster.running_ca import account_id
from tests.fakes.processes import program
from tests.node import image
from tests.node.installation import INSTALLATION, NAMESPACE, Installed
from tests.node.node import Node
from tests.node.pods import MOUNTED, Pod, Pods, PodSpec

SOCKET = f"{MOUNTED}/agent.sock"
CAP_CHOWN, CAP_SYS_ADMIN = 1 << 0, 1 << 21


async def pod_of_the_daemonset(node: Node, ca_address: str) -> JSON:
    """The pod that a DaemonSet controller would make for a node, with this machine's programs for its image."""
    template = copy.deepcopy(of_kind(await rendered(node.plane, INSTALLATION), "DaemonSet")["spec"]["template"])
    spec = template["spec"]
    volumes, mounts = image.volumes()
    spec["nodeName"] = node.name
    spec["volumes"] += volumes
    (container,) = spec["containers"]
    container |= {"image": image.NAME, "imagePullPolicy": "Never"}
    container["volumeMounts"] += mounts
    container["env"] += [
        {"name": "PATH", "value": f"{program('node-agent').parent}:/usr/bin"},
        {"name": "ISTIO_AUTH_AGENT__CA_ADDRESS", "value": ca_address},  # a cluster has a DNS for it
    ]
    return {"metadata": {"name": "istio-node-agent", **template["metadata"]}, "spec": spec}


@pytest.fixture
async def agents(node: Node, admin: Client, installed: Installed) -> AsyncIterator[Pods]:
    """The namespace of agents in pods, while none runs beside them. They are gone afterwards."""
    await asyncio.to_thread(installed.agent.end)
    agents = Pods(node, admin, NAMESPACE)
    try:
        yield agents
    finally:
        await agents.delete_all()
        await asyncio.to_thread(installed.agent.start)


async def test_an_agent_in_a_pod_serves_the_pods_of_its_node_with_two_capabilities_and_over_its_own_end(
    agents: Pods, pods: Pods, installed: Installed
) -> None:
    manifest = await pod_of_the_daemonset(pods.node, installed.ca_address)
    agent = await agents.make(manifest)
    await agent.runs()  # ready: the CA has given it a certificate of its own for the token of its pod
    assert await effective_capabilities(agent) == CAP_CHOWN | CAP_SYS_ADMIN
    files = PodSpec("files", {"form": "files", "ttl": "16s"}, service_account="web", user=1001, fs_group=2002)
    running = {MOUNTED: await pods.start(files), SOCKET: await pods.start(PodSpec("sockets", service_account="web"))}
    await agent.delete()
    await (await agents.make(manifest)).runs()
    for where, pod in running.items():
        (told,) = await pod.told("who", where)
        assert told["spiffe_id"] == account_id(pods.namespace, "web")
    assert len(await running[MOUNTED].told("follow", MOUNTED, 2)) == 2
    for pod in running.values():
        await pod.delete()
        assert not pod.is_mounted()


async def effective_capabilities(pod: Pod) -> int:
    """What its first process may do that others may not."""
    status = await pod.run("cat", "/proc/1/status")
    return int(dict(line.split(":\t") for line in status.splitlines())["CapEff"], 16)
