"""A pod without a volume of ours is known at the agent's socket by its control group, and by a real kubelet's word."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path

import pytest

from istio_auth.errors import NotReady
from istio_auth.host_port import HostPort
from istio_auth.registration import Registration, Selector
from istio_auth.spiffe_id import SpiffeID
from node_agent.attest.kubelet import Kubelet
from node_agent.attest.settings import KubernetesSettings
from tests.cluster.client import JSON
from tests.cluster.running_ca import account_id
from tests.cluster.waiting import eventually
from tests.fakes.ca import CAServer
from tests.fakes.certificate_client import FakeCA
from tests.fakes.clock import FakeClock
from tests.fakes.running_agent import RunningAgent
from tests.node.machine import ADDRESS, cgroup
from tests.node.node import Node
from tests.node.pods import PodFailed, Pods, PodSpec

SEEN = Path("/run/agent")
_RBAC = "/apis/rbac.authorization.k8s.io/v1"
_GROUP, _AUTHORIZATION = "rbac.authorization.k8s.io", "authorization.k8s.io"


@pytest.fixture
async def settings(node: Node, pods: Pods, tmp_path: Path) -> AsyncIterator[KubernetesSettings]:
    """How the kubelet is asked, by an account that may do nothing else."""
    name, token = f"agent-{pods.namespace}", tmp_path / "account-token"
    await pods.admin.create_service_account(pods.namespace, "agent")
    token.write_text(await pods.admin.service_account_token(pods.namespace, "agent"))
    rules = [{"apiGroups": [""], "resources": ["nodes/pods"], "verbs": ["get"]}]
    await pods.admin.create(f"{_RBAC}/clusterroles", {"metadata": {"name": name}, "rules": rules})
    yield KubernetesSettings(
        kubelet=HostPort(ADDRESS, 10250),
        kubelet_ca=node.plane.ca_file,
        token_file=token,
        cgroup_root=Path(f"/{cgroup()}"),
        containers=True,
    )
    await pods.admin.delete(f"{_RBAC}/clusterroles/{name}")


async def allow(pods: Pods) -> str:
    """Let the account ask; the path of what does, once the API server says so: a kubelet keeps a refusal for long."""
    name = f"agent-{pods.namespace}"
    binding: JSON = {
        "metadata": {"name": name},
        "roleRef": {"apiGroup": _GROUP, "kind": "ClusterRole", "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": "agent", "namespace": pods.namespace}],
    }
    await pods.admin.create(f"{_RBAC}/clusterrolebindings", binding)
    attributes = {"verb": "get", "resource": "nodes", "subresource": "pods", "name": pods.node.name}
    review = {"user": f"system:serviceaccount:{pods.namespace}:agent", "resourceAttributes": attributes}

    async def is_allowed() -> bool:
        path = f"/apis/{_AUTHORIZATION}/v1/subjectaccessreviews"
        return bool((await pods.admin.create(path, {"spec": review}))["status"]["allowed"])

    await eventually(is_allowed)
    return f"{_RBAC}/clusterrolebindings/{name}"


@pytest.fixture
async def agent(settings: KubernetesSettings, pods: Pods, tmp_path: Path) -> AsyncIterator[RunningAgent]:
    """An agent with a registration for the service account `web`."""
    clock = FakeClock(datetime.now(UTC))
    selectors = (f"k8s:ns:{pods.namespace}", "k8s:sa:web", f"k8s:node:{pods.node.name}", "k8s:container:main")
    web = Registration(SpiffeID.parse(account_id(pods.namespace, "web")), frozenset(map(Selector.parse, selectors)))
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(CAServer(FakeCA(clock)))
        server.register(web=web)
        agent = await stack.enter_async_context(RunningAgent(server, tmp_path, clock, kubernetes=settings))
        agent.give_token()
        agent.agent.identity.look_again()
        await agent.joined()
        await agent.served(web.spiffe_id.path)
        yield agent


def spec(agent: RunningAgent, name: str, account: str) -> PodSpec:
    """A pod that sees the folder of the agent's socket, and has no volume of the driver."""
    return PodSpec(
        name,
        attributes=None,
        service_account=account,
        volumes=[{"name": "agent", "hostPath": {"path": str(agent.folder)}}],
        mounts=[{"name": "agent", "mountPath": str(SEEN), "readOnly": True}],
    )


async def test_the_kubelet_tells_of_its_pods_whoever_may_ask(settings: KubernetesSettings, pods: Pods) -> None:
    assert settings.kubelet is not None
    kubelet = Kubelet(settings, settings.kubelet)
    with pytest.raises(NotReady, match="status 403: our account needs `get` on nodes/pods"):
        await kubelet.pods()
    binding = await allow(pods)

    async def look() -> bool:
        try:
            return (await kubelet.pods()) is not None
        except NotReady:
            return False  # the refusal is kept by the kubelet for a while

    assert await eventually(look, within=120)
    await pods.admin.delete(binding)


async def test_a_pod_is_who_its_service_account_is_on_the_agents_own_socket_and_another_is_nobody(
    agent: RunningAgent, pods: Pods
) -> None:
    binding = await allow(pods)
    web, other = await pods.start(spec(agent, "web", "web")), await pods.start(spec(agent, "other", "other"))
    (told,) = await web.told("who", SEEN / agent.socket.name)
    assert told["spiffe_id"] == account_id(pods.namespace, "web")
    with pytest.raises(PodFailed, match="no identity issued"):
        await other.told("who", SEEN / agent.socket.name, 30)
    await pods.admin.delete(binding)
