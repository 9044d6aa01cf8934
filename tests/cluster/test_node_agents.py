"""Agents of nodes on a real control plane: real programs, tokens as a kubelet projects them, pods that come and go."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import grpc
import pytest
import pytest_asyncio

from istio_auth.pem import read_private_key
from tests.cluster.client import JSON, Client
from tests.cluster.control_plane import ControlPlane
from tests.cluster.running_ca import (
    NOT_IMPERSONATED,
    NOT_PROVEN,
    TRUST_DOMAIN,
    Caller,
    RunningCA,
    account_id,
    published_roots,
)
from tests.cluster.waiting import eventually
from tests.fakes.processes import Program, program, run, status
from tests.fakes.tcp import closed_port
from tests.fakes.waiting import until
from tests.integration.daemons.foreign import Identity

pytestmark = pytest.mark.asyncio(loop_scope="module")
AUDIENCE = "istio-ca"
ACCOUNT = "istio-node-agent"


@dataclass
class Place:
    """A namespace with a CA that trusts the account of the agents, and with workloads."""

    plane: ControlPlane
    admin: Client
    ca: RunningCA
    namespace: str
    folder: Path
    caller: Caller
    roots: str

    def id(self, account: str) -> str:
        """The SPIFFE ID of a service account."""
        return account_id(self.namespace, account)

    async def node(self) -> str:
        """A new node."""
        name = f"node-{uuid.uuid4().hex[:8]}"
        await self.admin.create_node(name)
        return name

    async def pod(self, account: str, node: str | None) -> JSON:
        """A new pod."""
        name = f"{account}-{uuid.uuid4().hex[:8]}"
        return await self.admin.create_pod(self.namespace, name, service_account=account, node=node)

    async def delete(self, pod: JSON) -> None:
        """Delete a pod."""
        await self.admin.delete(f"/api/v1/namespaces/{self.namespace}/pods/{pod['metadata']['name']}")

    async def token(self, pod: JSON | None, *, account: str = ACCOUNT, audience: str = AUDIENCE) -> str:
        """A token as the kubelet projects it into a pod."""
        return await self.admin.service_account_token(self.namespace, account, audiences=[audience], pod=pod)

    async def agent(self, node: str) -> NodeAgent:
        """The agent of a node in its pod, not started yet."""
        pod = await self.pod(ACCOUNT, node)
        agent = NodeAgent(self, node, self.folder / uuid.uuid4().hex[:8], pod)
        agent.token.write_text(await self.token(pod))
        return agent


class NodeAgent:
    """A real agent, as the DaemonSet runs it, from entering to leaving.

    Args:
        place: where.
        node: its node.
        folder: for its files.
        pod: the pod that its token is of.
    """

    def __init__(self, place: Place, node: str, folder: Path, pod: JSON) -> None:
        folder.mkdir()
        self.node, self.pod, self.token = node, pod, folder / "token"
        self._place, self._folder, self.health = place, folder, closed_port()
        (folder / "roots.pem").write_text(place.roots)
        (folder / "node-agent.toml").write_text(
            f'name = "{node}"\nca_address = "{place.ca.address}"\nca_timeout = "5s"\n'
            f'ca_token_file = "{self.token}"\ntrust_bundle = "{folder}/roots.pem"\n'
            f'run_folder = "{folder}"\nstate_folder = "{folder}/state"\nmetrics_listen = "127.0.0.1:{self.health}"\n'
            '[kubernetes]\nkubelet = "127.0.0.1:1"\n'  # nobody: no caller is looked up here
            '[log]\nformat = "json"\nlevel = "debug"\n'
        )
        self.process = Program(
            [program("node-agent"), "--config", folder / "node-agent.toml"], folder / "node-agent.log"
        )

    async def __aenter__(self) -> Self:
        await self.process.start()
        return self

    async def __aexit__(self, *_error: object) -> None:
        if self.process.runs:
            await self.process.kill()

    async def ready(self) -> None:
        """Return when it says that it is."""
        try:
            await until(lambda: status(self.health) == 200, within=120)
        except TimeoutError:
            raise AssertionError(f"not ready: {self.process.text()[-3000:]}") from None

    async def status(self) -> dict[str, Any]:
        """What `node-agent status` tells; nothing while it does not listen yet."""
        socket = self._folder / "admin.sock"
        if not socket.exists():
            return {"workloads": []}
        told: dict[str, Any] = json.loads(
            await run("node-agent", "status", "--admin-socket", socket, "--output", "json")
        )
        return told

    async def holds(self, *accounts: str) -> None:
        """Return when it has a certificate for each of these service accounts, and for its own, and wants no others."""
        wanted = {self._place.id(account) for account in (*accounts, ACCOUNT)}

        async def look() -> bool:
            rows = (await self.status())["workloads"]
            return {row["spiffe_id"] for row in rows if row["not_after"]} == wanted and len(rows) == len(wanted)

        await eventually(look, within=120)

    def identity(self) -> Identity:
        """What whoever steals its own certificate and key has."""
        mark = b"-----BEGIN CERTIFICATE-----"
        key, _, chain = (self._folder / "state" / "svid.pem").read_bytes().partition(mark)
        return Identity(read_private_key(key), mark + chain)


@asynccontextmanager
async def placed(plane: ControlPlane, folder: Path, life: str) -> AsyncIterator[Place]:
    """A place where certificates live so long."""
    namespace = f"agents-{uuid.uuid4().hex[:8]}"
    async with plane.admin() as admin:
        await admin.create_namespace(namespace)
        for account in (ACCOUNT, "web", "db", "untrusted"):
            await admin.create_service_account(namespace, account)
        ca = RunningCA(
            plane.kubeconfig,
            folder / "ca",
            namespace,
            managed=[namespace],
            tokens={"node_accounts": [f"{namespace}/{ACCOUNT}"], "review_lasts": "1s"},
            signing={"default_ttl": life, "backdate": "5s"},
        )
        async with ca:
            await ca.leads()
            caller = await Caller.of(ca, admin, namespace)
            roots = await published_roots(admin, namespace)
            yield Place(plane, admin, ca, namespace, folder, caller, roots)
        await admin.delete(f"/api/v1/namespaces/{namespace}")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Place]:
    """Where nothing lapses while a test looks at it."""
    async with placed(control_plane, tmp_path_factory.mktemp("a"), "10m") as place:
        yield place


async def refused(place: Place, token: str, wanted: str, because: str) -> tuple[grpc.StatusCode, str]:
    """What a caller hears that asks for this identity by a token, and is refused for this reason in the CA's log."""
    heard, reason = await place.caller.refusal(token, wanted=wanted)
    assert because in reason
    return heard


async def gets(place: Place, token: str, wanted: str) -> str:
    """The identity that the token brings, once what happened so far is known to the CA."""

    async def given() -> str | None:
        try:
            return (await place.caller.identity(token, wanted=wanted))[0]
        except grpc.aio.AioRpcError:
            return None

    return await eventually(given)


def agent_id(node: str) -> str:
    """The SPIFFE ID of the agent of a node."""
    return f"spiffe://{TRUST_DOMAIN}/agent/{node}"


async def test_an_agent_gets_its_svid_and_those_of_the_pods_on_its_node_as_they_come_and_go(place: Place) -> None:
    here, there = await place.node(), await place.node()
    web = await place.pod("web", here)
    await place.pod("db", there)
    async with await place.agent(here) as agent:
        await agent.ready()
        assert (await agent.status())["agent"]["spiffe_id"] == agent_id(here)
        await agent.holds("web")

        db = await place.pod("db", here)
        await agent.holds("web", "db")
        await place.delete(web)
        await agent.holds("db")  # and it is asked for no more: the CA would refuse it
        heard, reason = await place.caller.refusal(shown=agent.identity(), wanted=place.id("web"))
        assert heard == NOT_IMPERSONATED
        assert f"not registered for agent {here}" in reason
        assert (await place.caller.identity(shown=agent.identity(), wanted=place.id("db")))[0] == place.id("db")
        await place.delete(db)
        await agent.holds()


async def test_an_agent_can_not_sign_for_pods_of_another_node(place: Place) -> None:
    here, there = await place.node(), await place.node()
    await place.pod("web", there)
    async with await place.agent(here) as agent:
        await agent.ready()
        heard, reason = await place.caller.refusal(shown=agent.identity(), wanted=place.id("web"))
        assert heard == NOT_IMPERSONATED
        assert f"not registered for agent {here}" in reason
        await place.pod("web", here)
        await agent.holds("web")
        assert (await place.caller.identity(shown=agent.identity(), wanted=place.id("web")))[0] == place.id("web")


async def test_a_stolen_svid_of_an_agent_is_not_renewed_and_ends_with_its_pod(place: Place) -> None:
    node = await place.node()
    await place.pod("web", node)
    async with await place.agent(node) as agent:
        await agent.ready()
        await agent.holds("web")
        stolen = agent.identity()
        _, reason = await place.caller.refusal(shown=stolen)
        assert "shows no token" in reason
        assert (await place.caller.identity(shown=stolen, wanted=place.id("web")))[0] == place.id("web")

        await place.delete(agent.pod)
        await agent.process.says("not in sync with the CA")  # its stream is ended at once

        async def shut_out() -> bool:
            try:
                _, reason = await place.caller.refusal(shown=stolen, wanted=place.id("web"))
            except AssertionError:
                return False
            return "no pod of a trusted node account" in reason

        assert await eventually(shut_out)


async def test_a_token_proves_the_agent_of_its_own_node_and_nobody_else(place: Place) -> None:
    node, other = await place.node(), await place.node()
    pod = await place.pod(ACCOUNT, node)
    token = await place.token(pod)
    assert await gets(place, token, agent_id(node)) == agent_id(node)
    assert (
        await refused(place, token, agent_id(other), f"is on {node}, and asks to be the agent of '{other}'")
        == NOT_IMPERSONATED
    )
    untrusted = await place.pod("untrusted", node)
    by_untrusted = await place.token(untrusted, account="untrusted")
    assert await gets(place, by_untrusted, "") == place.id("untrusted")
    assert await refused(place, by_untrusted, agent_id(node), "is no trusted node account") == NOT_IMPERSONATED
    of_nobody = await place.token(None)
    assert await refused(place, of_nobody, agent_id(node), "names no node") == NOT_IMPERSONATED
    elsewhere = await place.token(pod, audience="somebody-else")
    assert await refused(place, elsewhere, agent_id(node), "") == NOT_PROVEN
    await place.delete(pod)

    async def ended() -> bool:
        try:
            heard, _ = await place.caller.refusal(token, wanted=agent_id(node))
        except AssertionError:
            return False
        return heard in {NOT_PROVEN, NOT_IMPERSONATED}

    assert await eventually(ended)


async def test_a_lapsed_agent_is_back_by_itself_when_the_ca_is_by_the_token_of_that_moment(
    control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory
) -> None:
    async with AsyncExitStack() as stack:
        place = await stack.enter_async_context(placed(control_plane, tmp_path_factory.mktemp("a"), "16s"))
        node = await place.node()
        await place.pod("web", node)
        agent = await stack.enter_async_context(await place.agent(node))
        await agent.ready()
        await agent.holds("web")
        before = agent.identity()
        await place.ca.process.kill()
        try:
            await agent.process.says("the agent's own SVID has lapsed")
            await until(lambda: status(agent.health) == 503)
            agent.token.write_text(await place.token(agent.pod))  # the kubelet has no need of a CA
        finally:
            await place.ca.start()
        await agent.ready()
        await agent.holds("web")
        await until(lambda: agent.identity().pem != before.pem)


async def test_an_agent_that_lost_all_of_its_files_but_the_token_starts_as_if_nothing_had_been(place: Place) -> None:
    node = await place.node()
    await place.pod("web", node)
    async with await place.agent(node) as agent:
        await agent.ready()
        await agent.holds("web")
        await agent.process.kill()
        again = NodeAgent(place, node, place.folder / uuid.uuid4().hex[:8], agent.pod)
        again.token.write_text(await place.token(agent.pod))
        async with again:
            await again.ready()
            await again.holds("web")
