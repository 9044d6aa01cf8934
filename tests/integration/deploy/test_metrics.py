"""The guides explain every metric that a running CA and a running agent show, and no other."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from tests.fakes.processes import Machine, fetch

GUIDES = Path(__file__).parents[3] / "docs" / "guides"
OF_EVERY_PROGRAM = ("python_", "process_")


async def test_every_metric_that_is_shown_is_explained(tmp_path: Path) -> None:
    machine = Machine(tmp_path, ttl="1h")
    async with machine.ca:
        await machine.prepare()
        async with machine.agent:
            await machine.agent_is_ready()
            of_ca, of_agent = (set(shown(port)) for port in (machine.ca_health, machine.agent_health))
    assert of_ca == set(explained("operating-the-ca.md"))
    assert of_agent == {f"istio_auth_agent_{name}" for name in explained("node-agent.md")}


def shown(port: int) -> Iterator[str]:
    for name in re.findall(r"^# TYPE (\S+)", fetch(port, "/metrics").decode(), re.MULTILINE):
        if not name.startswith(OF_EVERY_PROGRAM) and not name.endswith("_created"):
            yield name


def explained(guide: str) -> Iterator[str]:
    """What stands in the first column of the table of metrics."""
    _, _, table = (GUIDES / guide).read_text().partition("\n| metric |")
    for row in re.findall(r"^\| (`.*?`) \|", table, re.MULTILINE):
        yield from re.findall(r"`(\w+)`", row)
