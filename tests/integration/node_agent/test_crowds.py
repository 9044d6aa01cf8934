"""Crowds at the agent's socket: a real agent, and clients in processes of their own that ask too much or never read."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from tests.fakes.processes import Machine, fetch
from tests.fakes.sds_client import SDSStream
from tests.fakes.waiting import until, until_async

WITHIN = 60  # seconds; on a machine that does other things too
LIMITS = "[limits]\nstreams_per_process = 300\nconnections_per_process = 260\nrequest_burst = 1000\n"


class Crowd:
    """Clients in a process of their own (`tests.fakes.sds_crowd`)."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def tells(self) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(b"\n")
        found: dict[str, Any] = json.loads(await self._process.stdout.readline())
        return found

    def stops_reading(self) -> None:
        self._process.send_signal(signal.SIGSTOP)


@asynccontextmanager
async def crowd(machine: Machine, behaviour: str, connections: int, streams: int) -> AsyncIterator[Crowd]:
    command = [sys.executable, "-m", "tests.fakes.sds_crowd", str(machine.socket), behaviour]
    process = await asyncio.create_subprocess_exec(
        *command,
        str(connections),
        str(streams),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield Crowd(process)
    finally:
        process.kill()
        await process.communicate()


@asynccontextmanager
async def node(folder: Path) -> AsyncIterator[Machine]:
    machine = Machine(folder, ttl="1h")
    with (folder / "agent.toml").open("a") as file:
        file.write(LIMITS)
    async with machine.ca:
        await machine.prepare()
        async with machine.agent:
            await machine.agent_is_ready()
            yield machine


def metric(machine: Machine, name: str) -> float:
    found = re.search(
        rf"^istio_auth_agent_{re.escape(name)} (\S+)", fetch(machine.agent_health, "/metrics").decode(), re.MULTILINE
    )
    return float(found[1]) if found else 0.0


def megabytes(pid: int) -> float:
    found = re.search(r"VmRSS:\s*(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) / 1000


def rotate(machine: Machine, name: str) -> None:
    """Have the workload registered otherwise, so that it gets a new certificate."""
    path = machine.folder / "registrations.toml"
    rest = [line for line in path.read_text().splitlines() if not line.startswith("dns_names")]
    path.write_text("\n".join([*rest, f'dns_names = ["{name}"]', ""]))
    machine.ca.signal(signal.SIGHUP)


async def test_an_honest_client_is_served_beside_those_that_flood_refuse_all_never_read_and_open_ten_thousand_streams(
    tmp_path: Path,
) -> None:
    async with node(tmp_path) as machine, AsyncExitStack() as stack, SDSStream(machine.socket, "default") as honest:
        await honest.receive()
        before = megabytes(machine.agent.pid)
        deaf = await stack.enter_async_context(crowd(machine, "opens", 10, 20))
        await until_async(lambda: _served(deaf, 200), within=WITHIN)
        deaf.stops_reading()
        flood, refusing, greedy = [
            await stack.enter_async_context(crowd(machine, behaviour, connections, streams))
            for behaviour, connections, streams in (("acks", 2, 10), ("nacks", 2, 10), ("opens", 100, 100))
        ]
        for each, limit in (
            (flood, "requests_per_second"),
            (refusing, "requests_per_second"),
            (greedy, "streams_per_process"),
        ):
            await until_async(lambda each=each, limit=limit: _refused(each, limit), within=WITHIN)  # type: ignore[misc]  # a default binds the loop's value
            counted = f'streams_refused_total{{limit="{limit}"}}'
            await until(lambda counted=counted: metric(machine, counted) > 0, within=WITHIN)  # type: ignore[misc]  # a default binds the loop's value
        first = honest.svid().leaf.serial_number
        for number in range(3):
            rotate(machine, f"rotation-{number}.test")
            await honest.receive(within=WITHIN)
            assert honest.svid().leaf.serial_number != first
            first = honest.svid().leaf.serial_number
        await until(lambda: 200 < metric(machine, "sds_clients") <= 1 + 200 + 20 + 20 + 300, within=WITHIN)
        assert megabytes(machine.agent.pid) - before < 150, "540 streams, and ten thousand that were refused"
        told = json.loads(await _status(machine))
        assert told["limits"]["busiest"][0]["uid"] == str(os.getuid())
        await stack.aclose()
        await until(lambda: metric(machine, "sds_clients") == 1, within=WITHIN)


async def test_a_thousand_sidecars_come_back_at_once_after_the_agent_was_killed(tmp_path: Path) -> None:
    async with node(tmp_path) as machine, AsyncExitStack() as stack:
        crowds = [await stack.enter_async_context(crowd(machine, "envoys", 250, 1)) for _ in range(4)]
        for each in crowds:
            await until_async(lambda each=each: _served(each, 250), within=WITHIN)  # type: ignore[misc]  # a default binds the loop's value
        await machine.agent.kill()
        await machine.agent.start()
        await machine.agent_is_ready()
        before = megabytes(machine.agent.pid)
        async with SDSStream(machine.socket, "default") as honest:
            await honest.receive(within=WITHIN)
        for each in crowds:
            await until_async(lambda each=each: _served(each, 250), within=WITHIN)  # type: ignore[misc]  # a default binds the loop's value
        await until(lambda: metric(machine, "sds_clients") == 1000, within=WITHIN)
        await until(lambda: metric(machine, "bundle_consumers_current") == 1000, within=WITHIN)
        assert megabytes(machine.agent.pid) - before < 150, "a thousand streams of 70 KB, and what coming at once takes"


async def _served(each: Crowd, count: int) -> bool:
    return bool((await each.tells())["served"] >= count)


async def _refused(each: Crowd, limit: str) -> bool:
    return limit in (await each.tells())["words"]


async def _status(machine: Machine) -> str:
    process = await asyncio.create_subprocess_exec(
        Path(sys.executable).parent / "node-agent",
        "status",
        "--admin-socket",
        str(machine.folder / "admin.sock"),
        "--output",
        "json",
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    return out.decode()
