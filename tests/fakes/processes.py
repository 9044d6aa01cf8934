"""The real programs as processes, set up as an operator would: by files and `ca-cli`."""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.fakes import guard
from tests.fakes.tcp import closed_port
from tests.fakes.waiting import until

_BIN = Path(sys.executable).parent
_PATIENCE = 20.0  # seconds that a busy program has for an answer


def program(name: str) -> Path:
    """One of our console scripts."""
    return _BIN / name


def fetch(port: int, path: str) -> bytes:
    """What a port of loopback answers over HTTP, status line and all; empty if nobody is there."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE) as connection:
            connection.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
            return b"".join(iter(lambda: connection.recv(1 << 16), b""))
    except OSError:
        return b""


def status(port: int, path: str = "/readyz") -> int:
    """The status that a port of loopback answers with; 0 if nobody is there."""
    answer = fetch(port, path)
    return int(answer.split()[1]) if answer else 0


def metric(port: int, name: str) -> float:
    """What a port of loopback tells of a metric, its labels included in the name; 0 if nothing.

    Nobody there is not nothing: that is no number, and no comparison with it holds.
    """
    if not (answer := fetch(port, "/metrics")):
        return math.nan
    told = (line.rpartition(" ") for line in answer.decode().splitlines())
    return next((float(value) for found, _, value in told if found == name), 0)


async def run(name: str, *arguments: object) -> str:
    """Run one of our programs to its end and return what it printed."""
    process = await asyncio.create_subprocess_exec(
        program(name), *map(str, arguments), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
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

    @property
    def runs(self) -> bool:
        """Whether it was started, and neither killed nor seen to end since."""
        return self._process is not None

    async def start(self) -> None:
        """Start it."""
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command, stderr=log, stdout=log, process_group=guard.group()
            )

    async def end(self) -> int:
        """Ask it to end; its exit code."""
        self.signal(signal.SIGTERM)
        return await self.ended()

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    async def ended(self) -> int:
        """Wait until it has ended; its exit code."""
        assert self._process is not None
        async with asyncio.timeout(60):
            code = await self._process.wait()
        self._process = None
        return code

    async def kill(self) -> None:
        """End it without a word."""
        assert self._process is not None
        with suppress(ProcessLookupError):  # it has ended by itself, which its log tells
            self._process.kill()
        await self._process.wait()
        self._process = None

    def text(self) -> str:
        """What it has written so far."""
        return self._log.read_text()

    def lines(self) -> list[dict[str, object]]:
        """What it has logged so far; a line that it is just writing is none yet."""
        whole = self.text().rpartition("\n")[0]
        return [json.loads(line) for line in whole.splitlines() if line.startswith("{")]

    async def says(self, event: str, *, after: int = 0) -> dict[str, object]:
        """Wait for a line with this event, not counting the first `after` lines."""
        return await self._line(lambda line: line["event"] == event, after)

    async def says_like(self, words: str, *, after: int = 0) -> dict[str, object]:
        """Wait for a line with these words anywhere in it, in any case."""
        return await self._line(lambda line: words in str(line).lower(), after)

    async def _line(self, wanted: Callable[[dict[str, object]], bool], after: int) -> dict[str, object]:
        found: list[dict[str, object]] = []

        def look() -> bool:
            found.extend(filter(wanted, self.lines()[after:]))
            return bool(found)

        await until(look)
        return found[0]


class Machine:
    """A CA and an agent in one folder, not started yet, with a workload for each name of the caller's own user.

    Args:
        folder: where everything is.
        ttl: the lifetime of certificates.
        workloads: path segments.
        ca_flags: more words for the CA's command line.
    """

    def __init__(
        self, folder: Path, *, ttl: str, workloads: Sequence[str] = ("web",), ca_flags: Sequence[object] = ()
    ) -> None:
        self.folder, self.socket = folder, folder / "agent.sock"
        self.token = folder / "token"
        self.ca_port, self.ca_health, self.agent_health = closed_port(), closed_port(), closed_port()
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
            f'state_folder = "{folder}/agent"\nrun_folder = "{folder}"\ntrust_bundle = "{folder}/bundle.json"\n'
            f'name = "node-1"\njoin_token_file = "{self.token}"\n[log]\nformat = "json"\n'
            f'[[socket]]\npath = "{self.socket}"\nname = "main"\nmode = "0600"\n'
        )
        self.ca = Program(self.ca_command(*ca_flags), folder / "ca.log")
        self.agent = Program([program("node-agent"), "--config", folder / "agent.toml"], folder / "agent.log")

    def ca_command(self, *flags: object) -> list[object]:
        """The command line of the CA."""
        return [program("istio-ca"), "--config", self.folder / "ca.toml", *flags]

    async def prepare(self) -> None:
        """Wait for the CA, and write the bundle to pin and a join token."""
        await self.ca.says("ready")
        await self.operator("trust-bundle", "--out", self.folder / "bundle.json")
        await self.invite(out=self.token)

    async def operator(self, *words: object) -> str:
        """Run `ca-cli` beside the CA; what it prints."""
        return await run("ca-cli", *words, "--state-folder", self.folder / "ca")

    async def invite(self, agent: str = "node-1", *, ttl: str = "10m", out: Path | None = None) -> str:
        """A new join token."""
        told = await self.operator("token", "create", agent, "--ttl", ttl, *(("--out", out) if out else ()))
        return told.strip()  # nothing, if it went to a file

    async def roots(self) -> bytes:
        """The roots, in PEM."""
        return (await self.operator("trust-bundle", "--format", "pem")).encode()

    async def agent_is_ready(self) -> None:
        """Wait until the agent says so on its port."""
        await until(lambda: status(self.agent_health) == 200)
