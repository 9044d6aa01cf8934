"""The stream between the CA and its agent, between the two programs themselves."""

from __future__ import annotations

from pathlib import Path

from tests.fakes.processes import Machine


async def test_an_agent_is_in_sync_again_after_it_has_renewed_its_own_svid(tmp_path: Path) -> None:
    machine = Machine(tmp_path, ttl="6s")
    async with machine.ca:
        await machine.prepare()
        async with machine.agent:
            await machine.agent_is_ready()
            await machine.agent.says("in sync with the CA")
            already = len(machine.agent.lines())
            await machine.agent.says("the agent has a new SVID", after=already)
            await machine.agent.says("in sync with the CA", after=already)
