"""A real `node-agent` whose CA is istiod, configured as the guide says."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc

from istio_auth.strict_json import JSON
from istio_auth.svid import X509SVID
from tests.cluster.istio.istiod import Mesh, written
from tests.fakes.processes import Program, fetch, metric, program, run
from tests.fakes.sds_client import SDSStream
from tests.fakes.tcp import closed_port
from tests.fakes.waiting import until

GUIDE = Path(__file__).parents[3] / "docs" / "guides" / "certificates-for-pods.md"
_SECTION = "## With istiod as the CA\n"
TTL = "20s"  # istiod sets the begin of a validity back by two minutes, whatever its length


def guides_settings() -> str:
    """The whole configuration that the guide shows."""
    section = GUIDE.read_text().partition(_SECTION)[2].partition("\n## ")[0]
    found = re.search(r"```toml\n(.*?)```", section, re.DOTALL)
    assert found, f"no configuration under {_SECTION}"
    return found[1]


class IstiodAgent:
    """The agent, from entering to leaving; everybody of our own user is each of its workloads.

    Args:
        mesh: whose istiod is its CA.
        folder: for all that it needs.
        workloads: the SPIFFE IDs that are registered.
        changed: settings of `[istio_ca]` with other values than the guide's.

    Attributes:
        process: it, with its log.
        socket: for workloads.
    """

    def __init__(self, mesh: Mesh, folder: Path, workloads: Sequence[str], **changed: str) -> None:
        self._mesh, self._folder, self.socket = mesh, folder, folder / "agent.sock"
        self._health = closed_port()
        self.roots, self._token = folder / "root-cert.pem", folder / "istio-token"
        self._settings = folder / "agent.toml"
        (folder / "registrations.toml").write_text(
            "".join(
                f'[[registration]]\nspiffe_id = "{each}"\nselectors = ["unix:uid:{os.getuid()}"]\nttl = "{TTL}"\n'
                for each in workloads
            )
        )
        self.configure(**changed)
        self.process = Program([program("node-agent"), "--config", self._settings], folder / "agent.log")

    def configure(self, **changed: str) -> None:
        """Write the settings: the guide's, with addresses and folders of the test."""
        text = guides_settings()
        replaced = {
            "istiod.istio-system.svc:15012": f"127.0.0.1:{self._mesh.istiod.port}",
            "/var/run/secrets/istio/root-cert.pem": str(self.roots),
            "/var/run/secrets/tokens/istio-token": str(self._token),
            "/etc/istio-auth/registrations.toml": str(self._folder / "registrations.toml"),
        }
        for old, new in replaced.items():
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        for name, value in changed.items():
            text, found = re.subn(rf'(?m)^{name} = "[^"]*"', f'{name} = "{value}"', text)
            assert found == 1, name
        own = (
            f'metrics_listen = "127.0.0.1:{self._health}"\nstate_folder = "{self._folder}/state"\n'
            f'run_folder = "{self._folder}"\nca_timeout = "5s"\n'
        )
        self._settings.write_text(f'{own}{text}\n[log]\nformat = "json"\n')

    async def __aenter__(self) -> Self:
        if not self.roots.exists():
            self.pin(await self._mesh.roots())
        if not self._token.exists():
            self.show(await self._mesh.agent_token())
        await self.process.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.process.runs:
            await self.process.kill()

    def pin(self, roots: str) -> None:
        """What the kubelet does when the config map changes."""
        written(self.roots, roots)

    def show(self, token: str) -> None:
        """What the kubelet does with a fresh token."""
        written(self._token, token)

    async def svid(self, name: str = "default") -> X509SVID:
        """What a sidecar that connects now is given."""
        async with asyncio.timeout(120):
            while True:
                async with SDSStream(self.socket, name, "ROOTCA") as stream:
                    try:
                        while name not in stream.secrets:
                            await stream.receive(within=120)
                    except grpc.aio.AioRpcError:  # its socket is not there yet
                        await asyncio.sleep(0.05)
                        continue
                    return stream.svid(name)

    async def status(self) -> dict[str, JSON]:
        """What `node-agent status` tells."""
        told = await run("node-agent", "status", "--admin-socket", self._folder / "admin.sock", "--output", "json")
        document: dict[str, JSON] = json.loads(told)
        return document

    def not_ready(self) -> str:
        """What it answers to who asks whether it is ready, if it is not."""
        answer = fetch(self._health, "/readyz").decode()
        return "" if " 200 " in answer.partition("\r\n")[0] else answer.partition("\r\n\r\n")[2]

    def metric(self, name: str) -> float:
        """What it tells of a metric, its labels included in the name."""
        return metric(self._health, f"istio_auth_agent_{name}")

    async def is_ready(self) -> None:
        """Return when it says so."""
        await until(lambda: fetch(self._health, "/readyz") and not self.not_ready())
