"""`make demo` fails if one line does not hold, and leaves nothing behind. CI runs it as it is, where all must hold."""

from __future__ import annotations

import re
import signal
import sys
from pathlib import Path

import pytest

from tests.integration.demo.demo import running_demo

_BIN = Path(sys.executable).parent

# A node agent whose sidecars for the backend let in one workload more than they should.
_LENIENT = """#!/bin/sh
case "$*" in
  *backend/sidecar.toml) sed -i '0,/allow = \\[/s||&"spiffe://cluster.local/ns/demo/sa/intruder", |' "$3";;
esac
exec {agent} "$@"
"""


@pytest.fixture
def lenient_python(tmp_path: Path) -> Path:
    """A Python whose installation is ours, except for the node agent."""
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "pyvenv.cfg").symlink_to(Path(sys.prefix) / "pyvenv.cfg")
    (venv / "lib").symlink_to(Path(sys.prefix) / "lib")
    (venv / "bin/python").symlink_to(Path(sys.executable).resolve())
    for name in ("istio-ca", "ca-cli"):
        (venv / "bin" / name).symlink_to(_BIN / name)
    agent = venv / "bin/node-agent"
    agent.write_text(_LENIENT.format(agent=_BIN / "node-agent"))
    agent.chmod(0o755)
    return venv / "bin/python"


async def test_one_line_that_does_not_hold_fails_the_demo_and_no_other_does(lenient_python: Path) -> None:
    async with running_demo("--proof", "socket", python=lenient_python) as demo:
        code = await demo.end()
        assert code == 1, demo.lines
        failed = [line for line in demo.lines if line.startswith("  FAILED")]
        assert ["a valid identity that is not allowed" in line for line in failed] == [True], failed
        assert "it should have been refused" in failed[0]
        held = [line for line in demo.lines if line.startswith("  ok ")]
        assert len(held) > 18
        assert any(re.fullmatch(rf"{len(held) + 1} findings in \d+ s: 1 FAILED", line) for line in demo.lines)
        assert not demo.processes()
        (kept,) = demo.folder.iterdir()  # to look into
        assert demo.lines[-1].endswith(str(kept))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
async def test_a_demo_that_is_interrupted_leaves_nothing_behind(number: signal.Signals) -> None:
    async with running_demo("--proof", "socket") as demo:
        await demo.has_started("istio-ca", "node-agent")
        assert await demo.end(number) == 128 + number
        assert not demo.processes()
        assert not list(demo.folder.iterdir())


async def test_a_demo_that_can_not_be_run_says_why(lenient_python: Path) -> None:
    lenient_python.with_name("node-agent").write_text("#!/bin/sh\necho no such luck >&2\nexit 7\n")
    async with running_demo("--proof", "socket", python=lenient_python) as demo:
        assert await demo.end() == 1
        assert "The demo could not go on: node-agent ended by itself with status 7" in demo.lines
        assert "no such luck" in demo.lines
        assert not demo.processes()
