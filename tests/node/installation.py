"""What an operator installs: the CA by its manifests and under its own account, and the node agent on the node."""

from __future__ import annotations

import asyncio
import json
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.cluster.manifests import KUBERNETES, Installation, ca_account, environment, rendered
from tests.cluster.running_ca import published_roots
from tests.cluster.server import Server
from tests.fakes.processes import metric, program, run, status
from tests.fakes.tcp import closed_port
from tests.node.machine import ADDRESS, KUBELET
from tests.node.node import Node

NAMESPACE = "istio-system"
SIGNER = "istio-auth.io/workload"
RUN = Path("/run/istio-auth")
INSTALLATION = Installation(components=("node-agent",))
_AGENT = """
name = "{node}"
ca_address = "{ca}"
ca_timeout = "5s"
trust_bundle = "{folder}/roots.pem"
state_folder = "{run}/state"
run_folder = "{run}"
metrics_listen = "127.0.0.1:{health}"
[csi]
endpoint = "{kubelet}/plugins/istio-auth/csi.sock"
publish_timeout = "5s"
[log]
format = "json"
"""


class Installed:
    """The CA and the agent, from entering to leaving.

    A test may kill them, if it starts them again.

    Args:
        node: where.

    Attributes:
        ca: the CA's process.
        agent: the agent's.
        roots: whom workloads trust, in PEM.
        ca_address: where the CA listens.
    """

    ca: Server
    agent: Server
    roots: str

    def __init__(self, node: Node) -> None:
        self._node, self._plane = node, node.plane
        self._ca_health, self._agent_health = closed_port(), closed_port()
        self.ca_address = f"{ADDRESS}:{closed_port()}"  # pods reach it as well

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.ca = self._add(stack, "istio-ca", asyncio.run(self._ca_command()), self._ca_health)
            self.roots = asyncio.run(self._roots())
            (self._plane.folder / "roots.pem").write_text(self.roots)
            self.agent = self._add(stack, "node-agent", self._agent_command(), self._agent_health, "/healthz")
            self._end = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end.close()

    def require_alive(self) -> None:
        """Make sure that both run.

        Raises:
            ServerFailed: one ended by itself.
        """
        self.ca.require_alive()
        self.agent.require_alive()

    def agent_log(self) -> str:
        """What the agent has written so far."""
        return (self._plane.folder / "node-agent.log").read_text()

    def metric(self, name: str) -> float:
        """What the agent tells of a metric, its labels included in the name."""
        return metric(self._agent_health, f"istio_auth_agent_{name}")

    async def volume_of(self, pod: str) -> dict[str, Any]:
        """What `node-agent status` says of the volume of a pod: `<namespace>/<name>`; nothing while it starts."""
        try:
            told = await run("node-agent", "status", "--output", "json", "--admin-socket", RUN / "admin.sock")
        except AssertionError:  # nobody listens there yet
            return {}
        return next((dict(each) for each in json.loads(told)["csi"]["volumes"] if each["pod"] == pod), {})

    def _add(self, stack: ExitStack, name: str, command: list[object], port: int, path: str = "/readyz") -> Server:
        server = self._plane.add(command, log=f"{name}.log", is_ready=lambda: status(port, path) == 200)
        stack.callback(server.end)
        return server

    async def _ca_command(self) -> list[object]:
        kubeconfig = await ca_account(self._plane, self._plane.folder / "istio-ca.kubeconfig", INSTALLATION)
        variables = environment(await rendered(self._plane, INSTALLATION))
        return [
            *("env", *(f"{name}={value}" for name, value in variables.items())),
            *(program("istio-ca"), "--config", KUBERNETES / "base" / "ca.toml", "--kubeconfig", kubeconfig),
            *("--state-folder", self._plane.folder / "istio-ca"),
            *("--listen", self.ca_address),
            *("--metrics-listen", f"127.0.0.1:{self._ca_health}"),
        ]

    def _agent_command(self) -> list[object]:
        config = self._plane.folder / "agent.toml"
        config.write_text(
            _AGENT.format(
                node=self._node.name,
                ca=self.ca_address,
                folder=self._plane.folder,
                run=RUN,
                health=self._agent_health,
                kubelet=KUBELET,
            )
        )
        return [program("node-agent"), "--config", config]

    async def _roots(self) -> str:
        async with self._plane.admin() as admin:
            return await published_roots(admin, NAMESPACE)
