"""go-spiffe as a workload of our agent: it starts too early, and then lives through whatever happens to the agent."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.fakes.ca import CAServer
from tests.fakes.certificate_client import FakeCA
from tests.fakes.clock import FakeClock
from tests.fakes.running_agent import RunningAgent, registration
from tests.fakes.waiting import until_async
from tests.interop.go_programs import built

pytestmark = [pytest.mark.interop, pytest.mark.timeout(600)]  # the first build fetches and compiles gRPC

WEB = "spiffe://cluster.local/web"


class Workload:
    """The program: what it tells, and two of its ends that meet on request."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def tells(self, what: str, value: str) -> dict[str, str]:
        """The next thing that it tells in which this is that; what it tells before is passed over."""
        assert self._process.stdout is not None
        async with asyncio.timeout(60):
            while line := await self._process.stdout.readline():
                told: dict[str, str] = json.loads(line)
                assert "error" not in told
                if told.get(what) == value:
                    return told
        raise AssertionError("the program has ended")

    async def meets(self) -> str:
        """The number of the certificate of an end that met another one; each found the other to be the workload."""
        self.do("meet")
        return (await self.tells("peer", WEB))["serial"]

    def do(self, what: str) -> None:
        """Have it do something."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{what}\n".encode())


@asynccontextmanager
async def workload(agent: RunningAgent) -> AsyncIterator[Workload]:
    process = await asyncio.create_subprocess_exec(
        await built("./workload"),
        env=os.environ | {"SPIFFE_ENDPOINT_SOCKET": f"unix://{agent.socket}"},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield Workload(process)
    finally:
        process.kill()
        await process.communicate()


def serial(agent: RunningAgent) -> str:
    """Of the certificate that the workload shall have."""
    (held,) = agent.agent.cache.snapshot.held.values()
    return f"{held.svid.leaf.serial_number:x}"


async def test_a_go_workload_is_served_once_it_is_registered_and_lives_on_without_the_agent(tmp_path: Path) -> None:
    clock = FakeClock(datetime.now(UTC) - timedelta(hours=3))
    ca = FakeCA(clock, ttl=timedelta(hours=4))  # what it issues before and after a rotation is good at the true time
    async with CAServer(ca) as server, RunningAgent(server, tmp_path, clock) as agent:
        agent.give_token()
        agent.agent.identity.look_again()
        await agent.joined()
        async with workload(agent) as program:
            assert (await program.tells("code", "PermissionDenied"))["words"] == "no identity issued"
            server.register(web=registration("/web"))
            assert (await program.tells("update", WEB))["serial"] == serial(agent)
            assert await program.meets() == serial(agent)
            program.do("token")
            assert (await program.tells("code", "Unimplemented"))["words"] == "JWT-SVIDs are not served by this agent"

            before = serial(agent)
            (held,) = agent.agent.cache.snapshot.held.values()
            clock.advance(held.due - clock.now())
            agent.agent.renewals.look_again()
            assert (await program.tells("update", WEB))["serial"] == serial(agent) != before
            await until_async(lambda: _meets_by(program, serial(agent)))

            before = serial(agent)
            await agent.stop()
            await program.tells("code", "Unavailable")
            assert await program.meets() == before
            await agent.start()
            assert (await program.tells("update", WEB))["serial"] == serial(agent)


async def _meets_by(program: Workload, wanted: str) -> bool:
    """Whether its other stream has come so far."""
    return await program.meets() == wanted
