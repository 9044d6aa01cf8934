"""spiffe-helper, which keeps the files of software that knows no SPIFFE, is at home on our agent's socket."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509

from istio_auth.errors import InvalidPEM
from istio_auth.pem import read_certificates
from tests.fakes.ca import CAServer
from tests.fakes.certificate_client import FakeCA
from tests.fakes.clock import FakeClock
from tests.fakes.go_module import GoModule
from tests.fakes.running_agent import RunningAgent, registration
from tests.fakes.waiting import until

pytestmark = [pytest.mark.interop, pytest.mark.timeout(600)]  # the first build fetches and compiles it

PROGRAM = GoModule(
    "spiffe-helper",
    Path(__file__).parent / "spiffe_helper",
    "spiffe-helper",
    {"spiffe-helper": "github.com/spiffe/spiffe-helper/cmd/spiffe-helper"},
)


def settings(agent: RunningAgent, folder: Path) -> str:
    """What spiffe-helper is told: where files go, and which program is signalled after each change."""
    program = f"trap 'echo renewed >> {folder}/told' USR1; echo started >> {folder}/told; while :; do sleep 0.05; done"
    texts = {
        "agent_address": str(agent.socket),
        "cert_dir": str(folder),
        "svid_file_name": "svid.pem",
        "svid_key_file_name": "key.pem",
        "svid_bundle_file_name": "bundle.pem",
        "cmd": "/bin/sh",
        "cmd_args": f'-c "{program}"',
        "renew_signal": "SIGUSR1",
    }
    return "\n".join(f"{name} = {json.dumps(value)}" for name, value in texts.items())


def leaf(agent: RunningAgent) -> x509.Certificate:
    """What the workload shall have."""
    (held,) = agent.agent.cache.snapshot.held.values()
    return held.svid.leaf


def written(file: Path) -> tuple[x509.Certificate, ...]:
    """The certificates in a file; none while it is not there, or not written to its end."""
    try:
        return read_certificates(file.read_bytes())
    except (OSError, InvalidPEM):
        return ()


async def test_it_writes_what_the_agent_serves_and_tells_its_program_of_each_rotation(tmp_path: Path) -> None:
    program = await asyncio.to_thread(PROGRAM.programs)
    clock, folder = FakeClock(datetime.now(UTC)), tmp_path / "files"
    folder.mkdir()
    async with CAServer(FakeCA(clock)) as server, RunningAgent(server, tmp_path, clock) as agent:
        server.register(web=registration("/web"))
        agent.give_token()
        agent.agent.identity.look_again()
        await agent.served("/web")
        config = tmp_path / "helper.conf"
        config.write_text(settings(agent, folder))
        process = await asyncio.create_subprocess_exec(
            program / "spiffe-helper",
            "-config",
            config,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            await until(lambda: written(folder / "svid.pem")[:1] == (leaf(agent),))
            # It is written after the SVID.
            await until(lambda: written(folder / "bundle.pem") == tuple(agent.agent.trust.own.x509_authorities))
            await until((folder / "told").exists)
            before = leaf(agent)
            (held,) = agent.agent.cache.snapshot.held.values()
            clock.advance(held.due - clock.now())
            agent.agent.renewals.look_again()
            await until(lambda: leaf(agent) != before)
            await until(lambda: written(folder / "svid.pem")[:1] == (leaf(agent),))
            await until(lambda: "renewed" in (folder / "told").read_text())
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)  # its program would outlive it
            await process.wait()
