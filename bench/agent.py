"""The node agent: what a stream and a workload cost in memory, how soon a rotation is everywhere, and its rest.

    python -m bench.agent [--json] [--streams N ...] [--workloads N ...] [--rest SECONDS] [--calls SECONDS]

CA and agent are the daemons, with their logs. `streams`: so many SDS clients, each with a connection of its own, ask
for the same certificate and the roots; `KB` is what each adds to the agent's memory. Then the workload is registered
otherwise, so that a new certificate is issued once; `p50` and `p99` are from the agent's log line of the new
certificate to the client's acceptance. `bare` is a server of gRPC's own that pushes as many bytes to the same clients
(`bench/agent_reference.py`); `ratio` compares with it. `workloads`: so many registered, each with a certificate of its
own. `calls`: how often in a second the Workload API answers, eight at once. `start`: from the start of the process to
the first certificate at a client. `rest`: the processor time of the agent while nothing happens.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import signal
import statistics
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from bench.process import Party, cpu_seconds, party
from tests.fakes.processes import Machine, fetch
from tests.fakes.waiting import until

SHARED = "a-shared"  # the first by name: the default of whoever may have all
SECRET_BYTES = 1600  # about as much as a certificate with its key, or a bundle
# All clients here are processes of one user, and few processes.
LIMITS = """[limits]
connections_per_process = 10000
streams_per_process = 10000
request_burst = 1000000
requests_per_second = 1000000
"""
AIMS = {"kb": 50, "megabytes": 55, "last_ms": 100}


@dataclass(frozen=True)
class Streams:
    """So many clients of one workload: kilobytes for each, and milliseconds from a rotation to its acceptance."""

    streams: int
    kb: float
    p50_ms: float
    p99_ms: float
    bare_kb: float
    bare_p50_ms: float
    bare_p99_ms: float


@dataclass(frozen=True)
class Result:
    """All of it.

    Args:
        streams: by their number.
        idle_megabytes: the agent's memory with one workload and no client.
        workload_kb: what each of so many workloads adds to the agent's memory.
        calls, bare_calls: of the Workload API in a second, of the agent and of the bare server.
        start_ms: from the start of the agent to the first certificate at a client.
        rest_share: of a processor, with all the workloads and nothing to do.
    """

    streams: list[Streams]
    idle_megabytes: float
    workload_kb: dict[int, float]
    calls: float
    bare_calls: float
    start_ms: float
    rest_share: float


async def measure(folder: Path, *, streams: list[int], workloads: list[int], rest: float, asking: float) -> Result:
    """The figures of one run."""
    machine = Machine(folder, ttl="24h", workloads=[SHARED])
    with (folder / "agent.toml").open("a") as file:
        file.write(LIMITS)
    async with machine.ca:
        await machine.prepare()
        async with machine.agent:
            await machine.agent_is_ready()
            await machine.agent.says("a workload has a new SVID")
            idle = megabytes(machine.agent.pid)
            rows = [await one(machine, folder, number) for number in streams]
            calls = await called(f"unix:{machine.socket}", folder, asking)
        start_ms = await start(machine, folder)
        await machine.agent.kill()
        each: dict[int, float] = {}
        share = 0.0
        for number in workloads:
            registrations(machine, workloads=number)
            async with machine.agent:
                await machine.agent_is_ready()
                await until(lambda number=number: held(machine) >= number + 1, within=120)  # type: ignore[misc]  # a default binds the loop's value
                each[number] = round((megabytes(machine.agent.pid) - idle) * 1000 / number, 1)
                before = cpu_seconds(machine.agent.pid)
                await asyncio.sleep(rest)
                share = (cpu_seconds(machine.agent.pid) - before) / rest
    bare_calls = await bare_called(folder, asking)
    return Result(rows, round(idle, 1), each, calls, bare_calls, round(start_ms), round(share, 4))


async def called(target: str, folder: Path, seconds: float) -> float:
    """How often in a second the Workload API answers there."""
    with party("bench.agent_client", target, log=folder / "clients") as client:
        return round((await told(client, {"calls": seconds}))["per_second"], 1)


async def bare_called(folder: Path, seconds: float) -> float:
    """How often the bare server answers."""
    path = folder / "bare.sock"
    path.unlink(missing_ok=True)
    with party("bench.agent_reference", str(path), log=folder / "bare") as server:
        await asyncio.to_thread(server.answer)
        return await called(f"unix:{path}", folder, seconds)


async def one(machine: Machine, folder: Path, streams: int) -> Streams:
    """So many streams, at the agent and at the reference."""
    name = f"spiffe://cluster.local/{SHARED}"
    with ExitStack() as stack:
        clients = stack.enter_context(party("bench.agent_client", f"unix:{machine.socket}", log=folder / "clients"))
        before = megabytes(machine.agent.pid)
        await told(clients, {"streams": streams, "names": [name]})
        kb = (megabytes(machine.agent.pid) - before) * 1000 / streams
        await told(clients, {"watch": True})
        after = len(machine.agent.lines())
        registrations(machine, rotation=time.time_ns())
        line = await machine.agent.says("a workload has a new SVID", after=after)
        began = datetime.fromisoformat(str(line["timestamp"])).timestamp()
        accepted = (await asyncio.to_thread(clients.answer))["accepted"]
        ours = [1000 * (instant - began) for instant in accepted]  # type: ignore[attr-defined]  # a list, this once
    bare_kb, bare = await reference(folder, streams)
    return Streams(streams, round(kb, 1), *spread(ours), round(bare_kb, 1), *spread(bare))


async def reference(folder: Path, streams: int) -> tuple[float, list[float]]:
    """What the bare server takes for it."""
    path = folder / "bare.sock"
    path.unlink(missing_ok=True)
    with ExitStack() as stack:
        server = stack.enter_context(party("bench.agent_reference", str(path), log=folder / "bare"))
        await asyncio.to_thread(server.answer)
        clients = stack.enter_context(party("bench.agent_client", f"unix:{path}", log=folder / "clients"))
        before = megabytes(server.pid)
        await told(clients, {"streams": streams, "names": ["x"]})
        kb = (megabytes(server.pid) - before) * 1000 / streams
        await told(clients, {"watch": True})
        began = (await told(server, {"bytes": SECRET_BYTES}))["began"]
        accepted = (await asyncio.to_thread(clients.answer))["accepted"]
        return kb, [1000 * (instant - began) for instant in accepted]  # type: ignore[attr-defined]  # a list


async def start(machine: Machine, folder: Path) -> float:
    """Milliseconds from the start of an agent that has joined before to the first certificate."""
    with party("bench.agent_client", f"unix:{machine.socket}", log=folder / "clients") as client:
        machine.socket.unlink(missing_ok=True)
        began = time.perf_counter()
        await machine.agent.start()
        await told(client, {"streams": 1, "names": [f"spiffe://cluster.local/{SHARED}"]})
        return 1000 * (time.perf_counter() - began)


def registrations(machine: Machine, *, workloads: int = 0, rotation: int = 0) -> None:
    """Write the CA's registrations anew, and have it read them."""
    rows = [(SHARED, f'dns_names = ["rotation-{rotation}.test"]\n')]
    rows += [(f"workload-{number}", "") for number in range(workloads)]
    selectors = (machine.folder / "registrations.toml").read_text().partition("selectors = ")[2].partition("\n")[0]
    text = "".join(
        f'[[registration]]\nspiffe_id = "spiffe://cluster.local/{name}"\nagents = ["node-1"]\n'
        f"selectors = {selectors}\n{more}"
        for name, more in rows
    )
    fresh = machine.folder / "registrations.new"
    fresh.write_text(text)
    fresh.replace(machine.folder / "registrations.toml")
    machine.ca.signal(signal.SIGHUP)


def held(machine: Machine) -> int:
    """How many certificates the agent holds."""
    found = re.search(rb"istio_auth_agent_svids_held (\d+)", fetch(machine.agent_health, "/metrics"))
    return int(found[1]) if found else 0


def megabytes(pid: int) -> float:
    """The memory that a process holds now."""
    found = re.search(r"VmRSS:\s*(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found, "Linux tells it"
    return int(found[1]) * 1024 / 1e6


async def told(other: Party, order: dict[str, object]) -> dict[str, float]:
    """What a process answers to an order."""
    other.tell(order)
    return await asyncio.to_thread(other.answer)


def spread(values: list[float]) -> tuple[float, float]:
    """The median and the 99th percentile."""
    ordered = sorted(values)
    return round(statistics.median(ordered), 1), round(ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))], 1)


def table(result: Result) -> str:
    """The figures for people."""
    ratio = result.calls / result.bare_calls if result.bare_calls else 0
    each = ", ".join(f"{kb:.1f} KB at {number}" for number, kb in result.workload_kb.items())
    head = f"{'streams':>8}{'KB':>8}{'bare':>8}{'ratio':>7}{'p50 ms':>9}{'p99 ms':>9}{'bare p50':>10}{'bare p99':>10}"
    lines = [
        f"{row.streams:>8}{row.kb:>8.1f}{row.bare_kb:>8.1f}{row.kb / row.bare_kb if row.bare_kb > 0 else 0:>7.2f}"
        f"{row.p50_ms:>9.1f}{row.p99_ms:>9.1f}{row.bare_p50_ms:>10.1f}{row.bare_p99_ms:>10.1f}"
        for row in result.streams
    ]
    rest = (
        f"the agent at rest: {result.idle_megabytes:.1f} MB (aim {AIMS['megabytes']}); each workload adds "
        f"{each}; at rest the most of them take {result.rest_share:.2%} of a processor\n"
        f"Workload API: {result.calls:.0f} calls a second, the bare server {result.bare_calls:.0f}; ratio {ratio:.2f}\n"
        f"start to the first certificate at a client: {result.start_ms:.0f} ms\n"
        f"Aims: {AIMS['kb']} KB a stream, {AIMS['last_ms']} ms to the last acceptance at 1000 streams."
    )
    return "\n".join([head, *lines, rest])


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.agent", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "--streams", type=int, nargs="+", default=[1, 100, 1000], help="SDS clients (default 1 100 1000)"
    )
    parser.add_argument("--workloads", type=int, nargs="+", default=[100, 1000], help="registered (default 100 1000)")
    parser.add_argument("--rest", type=float, default=20, help="seconds of rest that are looked at (default 20)")
    parser.add_argument("--calls", type=float, default=5, help="seconds of calls of the Workload API (default 5)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-agent-") as base:
        result = asyncio.run(
            measure(
                Path(base),
                streams=arguments.streams,
                workloads=arguments.workloads,
                rest=arguments.rest,
                asking=arguments.calls,
            )
        )
    print(json.dumps(asdict(result), indent=2) if arguments.json else table(result))


if __name__ == "__main__":
    main()
