"""The CA that the benchmarks on Kubernetes measure: its daemon, as it is installed, on a control plane of their own."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from bench.process import cpu_seconds
from tests.cluster.client import Client
from tests.cluster.control_plane import ControlPlane
from tests.fakes.processes import Program, fetch, program
from tests.fakes.tcp import closed_port

NAMESPACE = "istio-system"
Settings = Mapping[str, str | bool | int]
_Result = TypeVar("_Result")
_WRITES = re.compile(r'verb="(?:POST|PUT|PATCH|DELETE)"')


@dataclass(frozen=True)
class Cost:
    """What happened so far, or between two moments.

    Args:
        cpu: the processor time of the CA, in seconds.
        servers_cpu: that of the API server and etcd.
        calls: its calls of the API server, by its own count.
        writes: the changes of secrets by the API server's count, whoever asked for them.
    """

    cpu: float = 0
    servers_cpu: float = 0
    calls: float = 0
    writes: int = 0

    def __sub__(self, earlier: Cost) -> Cost:
        return Cost(*(one - another for one, another in zip(astuple(self), astuple(earlier), strict=True)))


class MeasuredCA:
    """A running CA, and what it costs.

    Args:
        plane: where it runs.
        admin: asks the API server.
        folder: for its state, settings and log.
        settings: of `[kubernetes]`.
        tokens: of `[kubernetes.tokens]`.

    Attributes:
        port: where it serves.
    """

    def __init__(
        self, plane: ControlPlane, admin: Client, folder: Path, *, settings: Settings, tokens: Settings
    ) -> None:
        self.port, self._health = closed_port(), closed_port()
        self._plane, self._admin = plane, admin
        folder.mkdir()
        cluster = {"kubeconfig": str(plane.kubeconfig), "namespace": NAMESPACE, **settings}
        sections: dict[str, Settings] = {
            "kubernetes": cluster,
            "kubernetes.controller": {"enable_by_default": False},
            "kubernetes.tokens": tokens,
            "log": {"format": "json"},
        }
        general = {
            "platform": "kubernetes",
            "listen": f"127.0.0.1:{self.port}",
            "metrics_listen": f"127.0.0.1:{self._health}",
            "state_folder": str(folder / "state"),
        }
        text = _toml(general) + "".join(f"[{name}]\n{_toml(section)}" for name, section in sections.items())
        (folder / "ca.toml").write_text(text)
        self._process = Program([program("istio-ca"), "--config", folder / "ca.toml"], folder / "ca.log")

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    async def start(self) -> None:
        """Start it; it is not ready then."""
        await self._process.start()

    async def end(self) -> None:
        """Have it end, and wait until it has."""
        await self._process.end()

    async def kill(self) -> None:
        """End it without a word."""
        await self._process.kill()

    def metric(self, name: str, **labels: str) -> float:
        """What it tells of a metric, over all its labels but those that are named; 0 if nothing."""
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        return sum(
            value
            for sample, value in self._metrics()
            if sample.partition("{")[0] == name and all(w in sample for w in wanted)
        )

    async def looks_after(self, accounts: int = 0) -> None:
        """Return when it leads, and so many secrets are looked after and nothing is left to do."""
        await soon(partial(asyncio.to_thread, self._is_idle, accounts), every=0.2)

    async def cost(self) -> Cost:
        """What happened so far."""
        cpu, servers = self.cpu(), self.servers_cpu()
        return Cost(cpu, servers, self.metric("istio_auth_ca_api_calls_total"), await self.writes())

    def cpu(self) -> float:
        """The processor time of the CA so far."""
        return cpu_seconds(self.pid)

    def servers_cpu(self) -> float:
        """The processor time of the API server and etcd so far."""
        return sum(cpu_seconds(server.pid) for server in (self._plane.api_server, self._plane.etcd))

    async def writes(self) -> int:
        """How many changes of secrets the API server was asked for so far, by whomever."""
        _, answer = await self._admin.request("GET", "/metrics")
        found = 0
        for line in str(answer["message"]).splitlines():
            if line.startswith("apiserver_request_total{") and 'resource="secrets"' in line:
                found += int(float(line.rpartition(" ")[2])) if _WRITES.search(line) else 0
        return found

    def _is_idle(self, accounts: int) -> bool:
        if not Path(f"/proc/{self.pid}").exists():
            raise SystemExit(f"the CA ended: {self._process.text()[-1000:]}")
        told = dict(self._metrics())
        managed, waiting = (told.get(f"istio_auth_ca_secrets_{name}", 0) for name in ("managed", "waiting"))
        return told.get("istio_auth_ca_leader") == 1 and managed >= accounts and not waiting

    def _metrics(self) -> Iterator[tuple[str, float]]:
        """The samples, each by its name and labels."""
        for line in fetch(self._health, "/metrics").decode().splitlines():
            if line.startswith("istio_auth_ca_"):
                sample, _, value = line.rpartition(" ")
                yield sample, float(value)


@asynccontextmanager
async def measured_ca(
    plane: ControlPlane, folder: Path, *, settings: Settings | None = None, tokens: Settings | None = None
) -> AsyncIterator[MeasuredCA]:
    """A CA that leads, and manages the namespaces that have the label."""
    async with plane.admin() as admin:
        ca = MeasuredCA(plane, admin, folder, settings=settings or {}, tokens=tokens or {})
        await ca.start()
        try:
            await ca.looks_after()
            yield ca
        finally:
            await ca.kill()


async def soon(look: Callable[[], Awaitable[bool]], *, every: float = 0.05, within: float = 600) -> None:
    """Return when something is so."""
    async with asyncio.timeout(within):
        while not await look():  # noqa: ASYNC110  # what is waited for sets no event
            await asyncio.sleep(every)


async def at_once(work: Sequence[Coroutine[object, object, _Result]], *, most: int = 32) -> list[_Result]:
    """Do things, so many of them at a time."""
    gate = asyncio.Semaphore(most)

    async def one(thing: Coroutine[object, object, _Result]) -> _Result:
        async with gate:
            return await thing

    return await asyncio.gather(*map(one, work))


def _toml(section: Settings) -> str:
    return "".join(f"{name} = {json.dumps(value)}\n" for name, value in section.items())
