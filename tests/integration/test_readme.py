"""The tour of README.md does what it says: every command is run as it stands there, on ports of this test's own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import istio_auth
from tests.fakes.tcp import closed_port

ROOT = Path(istio_auth.__file__).parent.parent
README = (ROOT / "README.md").read_text()
_BLOCK = re.compile(r"^```(sh|python|text)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_PORTS = ("15012", "15014", "8443", "8080")  # those that the tour names
_LONGEST = 500

pytestmark = pytest.mark.timeout(600)

# A person waits until a program that was started in the background is there; here a shell function does.
_WAIT = """
await() { for _ in $(seq 1200); do "$@" > /dev/null 2>&1 && return; sleep 0.1; done; echo "never: $*"; exit 9; }
listening() { (exec 3<> "/dev/tcp/127.0.0.1/$1"); }
"""
# Whatever it started has ended when it ends: else it would write into a folder that is just removed.
_END = "trap 'kill $(jobs -p) 2> /dev/null; wait' EXIT"
_UNTIL = {
    "istio-ca": "await curl -fs 127.0.0.1:15014/readyz",
    "node-agent": "await curl -fs 127.0.0.1:$AGENT_PORT/readyz",
    "python3": "await listening 8080",
    "envoy": "await listening 8443",
}


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose path is short enough for Unix sockets."""
    with tempfile.TemporaryDirectory(prefix="tour-") as name:
        yield Path(name)


def test_the_tour_shows_what_it_says(folder: Path) -> None:
    blocks = _BLOCK.findall(README.partition("## A five-minute tour")[2])
    assert blocks[0][1].startswith("make install")
    script, ports, agent_port = _script(blocks[1:]), {port: str(closed_port()) for port in _PORTS}, closed_port()
    for port, own in ports.items():
        script = re.sub(rf"\b{port}\b", own, script)
    told, code = _run(script, folder, agent_port)
    assert code == 0, told
    for port, own in ports.items():
        told = re.sub(rf"\b{own}\b", port, told)
    lines = {_rough(line) for line in told.splitlines()}
    promised = [line for kind, text in blocks if kind == "text" for line in text.splitlines()]
    assert len(promised) > 10
    assert [line for line in promised if _rough(line) not in lines] == [], told


def _script(blocks: list[tuple[str, str]]) -> str:
    parts = ["set -eo pipefail", _END, _WAIT]
    for kind, text in blocks:
        if kind == "python":
            parts.append(f"python - <<'END'\n{text}END")
        elif kind == "sh":
            parts += [_with_waiting(command) for command in re.split(r"(?<!\\)\n(?=\w)", text)]
    return "\n".join(parts)


def _with_waiting(command: str) -> str:
    if not command.rstrip().endswith("&"):
        return command
    return command + "\n" + _UNTIL[command.split(maxsplit=1)[0]]


def _run(script: str, folder: Path, agent_port: int) -> tuple[str, int]:
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "AGENT_PORT": str(agent_port),
        "ISTIO_AUTH_AGENT__METRICS_LISTEN": f"127.0.0.1:{agent_port}",
    }
    with (folder / "told").open("w+") as told:
        shell = subprocess.Popen(
            ["bash", "-c", script], cwd=folder, env=environment, stdout=told, stderr=told, start_new_session=True
        )
        try:
            code = shell.wait(_LONGEST)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGTERM)
            shell.wait()
        told.seek(0)
        return told.read(), code


def _rough(line: str) -> str:
    """A line without what differs from run to run."""
    return re.sub(r"\s+", " ", line).strip()
