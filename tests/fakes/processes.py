"""The real programs as processes, set up as an operator would: by files and `ca-cli`."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.fakes.waiting import until

_BIN = Path(sys.executable).parent


def free_port() -> int:
    """A port of loopback that nobody listens at now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def run(name: str, *arguments: object) -> str:
    """Run one of our programs to its end and return what it printed."""
    process = await asyncio.create_subprocess_exec(
        _BIN / name, *map(str, arguments), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode()


class Program:
    """A daemon of ours, from `start` to `end` or `kill`, as often as a test wants. Its logs are JSON lines in a file.

    Args:
        command: the words of its command line.
        log: where its logs go.
    """

    def __init__(self, command: Sequence[object], log: Path) -> None:
        self._command, self._log = [str(word) for word in command], log
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process is not None:
            await self.kill()

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        """Start it."""
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(*self._command, stderr=log, stdout=log)

    async def end(self) -> int:
        """Ask it to end; its exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(15):
            code = await self._process.wait()
        self._process = None
        return code

    async def kill(self) -> None:
        """End it without a word."""
        assert self._process is not None
        self._process.kill()
        await self._process.wait()
        self._process = None

    def lines(self) -> list[dict[str, object]]:
        """What it has logged so far."""
        return [json.loads(line) for line in self._log.read_text().splitlines() if line.startswith("{")]

    async def says(self, event: str, *, after: int = 0) -> dict[str, object]:
        """Wait for a line with this event, not counting the first `after` lines."""
        found: list[dict[str, object]] = []

        def look() -> bool:
            found.extend(line for line in self.lines()[after:] if line["event"] == event)
            return bool(found)

        await until(look, within=30)
        return found[0]


class Machine:
    """A CA and an agent in one folder, not started yet, with a workload for each name of the caller's own user.

    Args:
        folder: where everything is.
        ttl: the lifetime of certificates.
        workloads: path segments.
    """

    def __init__(self, folder: Path, *, ttl: str, workloads: Sequence[str] = ("web",)) -> None:
        self.folder, self.socket = folder, folder / "agent.sock"
        self.token = folder / "token"
        self.ca_port, self.ca_health, self.agent_health = free_port(), free_port(), free_port()
        (folder / "registrations.toml").write_text(
            "".join(
                f'[[registration]]\nspiffe_id = "spiffe://cluster.local/{name}"\nagents = ["node-1"]\n'
                f'selectors = ["unix:uid:{os.getuid()}"]\n'
                for name in workloads
            )
        )
        (folder / "ca.toml").write_text(
            f'listen = "127.0.0.1:{self.ca_port}"\nmetrics_listen = "127.0.0.1:{self.ca_health}"\n'
            f'state_folder = "{folder}/ca"\nregistrations = "{folder}/registrations.toml"\n'
            f'[signing]\ndefault_ttl = "{ttl}"\n[log]\nformat = "json"\n'
        )
        (folder / "agent.toml").write_text(
            f'ca_address = "127.0.0.1:{self.ca_port}"\nmetrics_listen = "127.0.0.1:{self.agent_health}"\n'
            f'state_folder = "{folder}/agent"\ntrust_bundle = "{folder}/bundle.json"\nname = "node-1"\n'
            f'join_token_file = "{self.token}"\n[log]\nformat = "json"\n'
            f'[[socket]]\npath = "{self.socket}"\nname = "main"\nmode = "0600"\n'
        )
        self.ca = Program([_BIN / "istio-ca", "--config", folder / "ca.toml"], folder / "ca.log")
        self.agent = Program([_BIN / "node-agent", "--config", folder / "agent.toml"], folder / "agent.log")

    async def prepare(self) -> None:
        """Wait for the CA, and write the bundle to pin and a join token."""
        await self.ca.says("ready")
        state = ("--state-folder", self.folder / "ca")
        await run("ca-cli", "trust-bundle", "--out", self.folder / "bundle.json", *state)
        await run("ca-cli", "token", "create", "node-1", "--out", self.token, *state)

    async def agent_is_ready(self) -> None:
        """Wait until the agent says so on its port."""
        await until(lambda: self._status() == 200, within=30)

    def _status(self) -> int:
        try:
            with socket.create_connection(("127.0.0.1", self.agent_health), timeout=2) as connection:
                connection.sendall(b"GET /readyz HTTP/1.0\r\n\r\n")
                return int(connection.recv(100).split()[1])
        except OSError:
            return 0
