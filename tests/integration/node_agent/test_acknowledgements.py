"""Who has taken the trust bundle, as the CA's operator sees it: a real CA, a real agent, and clients of three kinds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.fakes.processes import Machine
from tests.fakes.sds_client import SDSStream
from tests.fakes.waiting import until_async
from tests.fakes.workload_api_stream import WorkloadAPIStream


async def test_the_ca_is_told_how_many_have_taken_the_bundle_and_who_has_not(tmp_path: Path) -> None:
    machine = Machine(tmp_path, ttl="1h")

    async def heard() -> dict[str, Any]:
        (agent,) = json.loads(await machine.operator("agent", "list", "--output", "json"))
        found: dict[str, Any] = agent["heard"] or {}
        return found

    async def counts(current: int, total: int) -> bool:
        found = await heard()
        return (found.get("consumers_current"), found.get("consumers")) == (current, total)

    async with machine.ca:
        await machine.prepare()
        async with machine.agent:
            await machine.agent_is_ready()
            async with (
                SDSStream(machine.socket, "default", "ROOTCA", node="taken") as taken,
                SDSStream(machine.socket, "ROOTCA", node="refuses") as refuses,
                SDSStream(machine.socket, "default", node="wants no bundle") as other,
                WorkloadAPIStream(machine.socket) as workload,
            ):
                await taken.receive()
                await other.receive()
                await workload.receive()
                await refuses.receive(refusal="unable to parse the certificate")
                await until_async(lambda: counts(2, 3))
                found = await heard()
                assert found["laggards"] == ["spiffe://cluster.local/web (refuses)"]
                assert found["bundle_sequence"] == 1
                assert found["streams"] == 1
                text = await machine.operator("agent", "list")
                assert "2 of 3" in text
                assert "spiffe://cluster.local/web (refuses)" in text
            await until_async(lambda: counts(0, 0))
