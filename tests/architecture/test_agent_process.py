"""What a running node agent holds: no signing code of the CA's, nothing of Kubernetes, and not much memory."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.fakes.processes import Machine, Program
from tests.fakes.sds_client import SDSStream

_PROBE = """
import atexit, json, sys
from pathlib import Path

found = Path(sys.argv.pop())

def tell():
    lines = Path("/proc/self/status").read_text().splitlines()
    found.write_text(json.dumps([sorted(sys.modules), [line for line in lines if line.startswith("VmRSS")]]))

atexit.register(tell)
from node_agent.cli import main
main()
"""
MOST_MEMORY = 120  # MB; 75 at rest where it was measured


async def test_a_running_agent_holds_nothing_of_the_ca_and_little_memory(tmp_path: Path) -> None:
    machine, found = Machine(tmp_path, ttl="1h"), tmp_path / "found.json"
    agent = Program([sys.executable, "-c", _PROBE, "--config", tmp_path / "agent.toml", found], tmp_path / "agent.log")
    async with machine.ca:
        await machine.prepare()
        async with agent:
            await machine.agent_is_ready()
            async with SDSStream(machine.socket, "default", "ROOTCA") as stream:
                await stream.receive()
            assert await agent.end() == 0
    modules, (memory,) = json.loads(found.read_text())
    assert "node_agent.sds.session" in modules
    assert not [name for name in modules if name.partition(".")[0] in {"ca", "kubernetes", "jwt", "hypothesis"}]
    assert int(memory.split()[1]) // 1024 < MOST_MEMORY
