"""The agent while its CA is away or wrong, its disk is full, or it is killed: workloads are served, and it is told."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from istio_auth.spiffe_id import SpiffeID
from istio_auth.svid import X509SVID
from node_agent.file_system import is_in_memory
from tests.fakes.ca import CAServer
from tests.fakes.certificate_client import FakeCA, Fault
from tests.fakes.clock import FakeClock
from tests.fakes.processes import Machine, program
from tests.fakes.running_agent import RunningAgent, registration
from tests.fakes.sds_client import SDSStream, received
from tests.fakes.waiting import until

HOUR = timedelta(hours=1)
WEB, API = (SpiffeID.parse(f"spiffe://cluster.local/{name}") for name in ("web", "api"))
WORDS = {
    Fault.WRONG_KEY: "key",
    Fault.WRONG_NAME: "name",
    Fault.EXPIRED: "expired",
    Fault.UNKNOWN_ROOT: "does not chain to the bundle",
    Fault.SHORT_CHAIN: "does not chain to the bundle",
    Fault.TOO_SHORT: "too short",
    Fault.EMPTY: "no certificate",
}


@pytest.fixture
async def server(clock: FakeClock) -> AsyncIterator[CAServer]:
    async with CAServer(FakeCA(clock)) as server:
        server.register(web=registration("/web"), api=registration("/api"))
        yield server


async def join(agent: RunningAgent) -> None:
    agent.give_token()
    agent.agent.identity.look_again()
    await agent.joined()
    await agent.served("/web", "/api")


async def status(admin_socket: Path) -> tuple[dict[str, Any], str]:
    """What `node-agent status` prints, as JSON and for people."""
    printed = []
    for words in (["--output", "json"], []):
        command = ["-c", "from node_agent.cli import main; main()", "status", "--admin-socket", str(admin_socket)]
        process = await asyncio.create_subprocess_exec(
            sys.executable, *command, *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        out, _ = await process.communicate()
        assert process.returncode == 0, out.decode()
        printed.append(out.decode())
    return json.loads(printed[0]), printed[1]


def held(agent: RunningAgent, spiffe_id: SpiffeID) -> X509SVID:
    return agent.agent.cache.snapshot.held[spiffe_id].svid


@pytest.mark.parametrize("fault", WORDS, ids=lambda fault: fault.value)
async def test_one_workloads_bad_answers_are_named_its_last_good_one_is_served_and_the_others_are_renewed(
    server: CAServer, tmp_path: Path, clock: FakeClock, fault: Fault
) -> None:
    async with RunningAgent(server, tmp_path, clock) as agent:
        await join(agent)
        web, api = held(agent, WEB), held(agent, API)
        server.ca.fault, server.ca.fault_of = fault, WEB
        agent.pass_time(HOUR * 0.6)
        await until(lambda: held(agent, API) is not api)
        want = agent.agent.cache.snapshot.wanted[WEB]
        await until(lambda: agent.agent.renewals.refusal(want))
        assert f"({WORDS[fault]})" in str(agent.agent.renewals.refusal(want))
        assert agent.agent.renewals.refused_for(want) is not None
        counted = agent.agent.metrics.registry.get_sample_value(
            "istio_auth_agent_bad_answers_total", {"fault": WORDS[fault]}
        )
        assert counted
        async with SDSStream(agent.socket, str(WEB)) as stream:
            await stream.receive()
            assert stream.svid(str(WEB)).chain == web.chain
        server.ca.fault = Fault.NONE
        await until(lambda: held(agent, WEB) is not web)
        assert agent.agent.renewals.refusal(want) is None


async def test_the_command_tells_what_is_wrong_and_since_when(
    server: CAServer, tmp_path: Path, clock: FakeClock
) -> None:
    async with RunningAgent(server, tmp_path, clock) as agent:
        await join(agent)
        server.ca.fault, server.ca.fault_of = Fault.WRONG_NAME, WEB
        agent.pass_time(HOUR * 0.6)
        await until(lambda: agent.agent.renewals.refusal(agent.agent.cache.snapshot.wanted[WEB]))
        found, text = await status(agent.config.admin_at)
        rows = {row["spiffe_id"]: row for row in found["workloads"]}
        assert rows[str(API)]["trouble"] is None
        assert "(name)" in rows[str(WEB)]["trouble"]
        assert rows[str(WEB)]["since"]
        assert "since 2030-01-01T12:3" in text
        assert "renewal is due" in text
        await server.away()
        agent.pass_time(timedelta(minutes=1))
        await until(lambda: "was not reached" in (agent.agent.sync.trouble or ""))
        found, text = await status(agent.config.admin_at)
        assert found["ca"]["since"]
        assert "since 2030-01-01T12:3" in text.partition("CA\n")[2].partition("Workload")[0]
        assert "the first workload loses its certificate in" in text


@contextmanager
def small_file_system(folder: Path) -> Iterator[Path]:
    folder.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k,mode=0700", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def fill(folder: Path) -> Path:
    """Leave no byte free."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"\0" * 4096)
        except OSError:
            return ballast


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="a file system of one's own needs root")
@pytest.mark.parametrize("full", ["state", "workloads"])
async def test_a_full_disk_stops_nothing_is_told_and_is_caught_up_with(
    server: CAServer, tmp_path: Path, clock: FakeClock, full: str
) -> None:
    with small_file_system(tmp_path / full) as folder:
        async with RunningAgent(server, tmp_path, clock, allow_disk_cache=True) as agent:
            ballast = fill(folder)
            await join(agent)  # the node key is there, and nothing else
            await until(lambda: "No space left" in str(agent.daemon.readiness.remarks()))
            assert not agent.daemon.readiness.problems()
            web, own = held(agent, WEB), agent.agent.identity.svid
            agent.pass_time(HOUR * 0.6)
            await until(lambda: held(agent, WEB) is not web and agent.agent.identity.svid is not own)
            async with SDSStream(agent.socket, str(WEB)) as stream:
                await stream.receive()
                assert stream.svid(str(WEB)).chain == held(agent, WEB).chain
            found, text = await status(agent.config.admin_at)
            assert "No space left" in found["degraded"]["unwritten"]
            assert "No space left" in text
            assert agent.agent.metrics.registry.get_sample_value("istio_auth_agent_unwritten") == 1
            calls = len(server.ca.calls)
            ballast.unlink()
            await until(lambda: not agent.daemon.readiness.remarks(), within=60)  # ten seconds on an idle machine
            assert len(server.ca.calls) == calls
            written = b"".join(path.read_bytes() for path in folder.glob("*.pem"))
            renewed = agent.agent.identity.svid if full == "state" else held(agent, WEB)
            assert renewed is not None
            assert renewed.chain_pem() in written


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder on a file system in memory, which every Linux has for its shared memory."""
    if not is_in_memory(Path("/dev/shm")):  # what the test needs is this very place
        pytest.skip("/dev/shm is not in memory here")
    folder = Path(tempfile.mkdtemp(dir="/dev/shm"))  # as above
    yield folder
    shutil.rmtree(folder)


async def test_an_agent_killed_and_started_again_while_the_ca_is_away_serves_at_once_what_it_held(
    memory: Path,
) -> None:
    machine = Machine(memory, ttl="1h")
    kept = memory / "workloads"
    async with machine.ca:
        await machine.prepare()
        async with machine.agent:
            await machine.agent_is_ready()
            before = await received(machine.socket, within=60)
            await until(lambda: list(kept.glob("*.pem")))
            assert kept.stat().st_mode & 0o777 == 0o700
            assert {each.stat().st_mode & 0o777 for each in kept.iterdir()} == {0o600}
            await machine.ca.kill()
            machine.token.unlink()
            await machine.agent.kill()
            lines = len(machine.agent.lines())
            await machine.agent.start()
            after = await received(machine.socket, within=60)
            assert after.chain == before.chain
            assert after.key_pem() == before.key_pem()
            await machine.agent.says("workloads are served from what was kept", after=lines)
            await machine.agent_is_ready()
            await machine.agent.kill()
            (kept / "boot-id").write_text("another uptime")
            lines = len(machine.agent.lines())
            await machine.agent.start()
            await machine.agent.says("started, and not ready yet", after=lines)
            assert {each.name for each in kept.iterdir()} == {"boot-id"}


@pytest.mark.parametrize("allowed", [False, True])
async def test_a_folder_on_a_disk_is_refused_unless_that_is_allowed(tmp_path: Path, allowed: bool) -> None:
    if is_in_memory(tmp_path):
        pytest.skip("the folder for temporary files is in memory here")
    machine = Machine(tmp_path, ttl="1h")
    (tmp_path / "bundle.json").write_bytes(FakeCA(FakeClock()).root.bundle().to_json())
    flags = ["--keep-folder", str(tmp_path / "kept"), *(["--allow-disk-cache"] if allowed else [])]
    process = await asyncio.create_subprocess_exec(
        program("node-agent"),
        "check-config",
        "--config",
        tmp_path / "agent.toml",
        *flags,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await process.communicate()
    assert process.returncode == (0 if allowed else 2), out.decode()
    assert ("keys of workloads would reach a disk" in out.decode().replace("\n", " ")) is not allowed
    assert machine.folder == tmp_path
