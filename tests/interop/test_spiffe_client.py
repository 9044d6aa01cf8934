"""Another project's SPIFFE client is at home on our agent's socket."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding

from tests.fakes.ca import CAServer
from tests.fakes.certificate_client import FakeCA
from tests.fakes.clock import FakeClock
from tests.fakes.running_agent import RunningAgent, registration


async def line(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    async with asyncio.timeout(60):
        return (await process.stdout.readline()).decode().strip()


def digest(agent: RunningAgent) -> str:
    """Of the leaf that the workload shall have."""
    (held,) = agent.agent.cache.snapshot.held.values()
    return hashlib.sha256(held.svid.leaf.public_bytes(Encoding.DER)).hexdigest()


async def test_the_spiffe_package_fetches_watches_and_follows_a_rotation(tmp_path: Path) -> None:
    clock = FakeClock(datetime.now(UTC))  # the package looks at no dates, but may come to
    async with CAServer(FakeCA(clock)) as server, RunningAgent(server, tmp_path, clock) as agent:
        server.register(web=registration("/web"))
        agent.give_token()
        agent.agent.identity.look_again()
        await agent.served("/web")
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.interop.spiffe_client", f"unix://{agent.socket}"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            assert json.loads(await line(process)) == {
                "svids": ["spiffe://cluster.local/web"],
                "bundles": ["cluster.local"],
            }
            assert await line(process) == digest(agent)
            before = digest(agent)
            (held,) = agent.agent.cache.snapshot.held.values()
            clock.advance(held.due - clock.now())
            agent.agent.renewals.look_again()
            while (told := await line(process)) == before:
                pass
            assert told == digest(agent)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            await process.wait()
        assert process.returncode == 0
