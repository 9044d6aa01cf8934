"""What `make cluster` prints can be typed as it stands, and shows what it says."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import istio_auth

ROOT = Path(istio_auth.__file__).parent.parent
_INDENT = "    "
_LAST = "Ctrl-C here ends all of it"


@pytest.fixture
async def printed() -> AsyncIterator[list[str]]:
    """The commands that it prints; it runs until the test has ended, and is told to end by Ctrl-C."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.cluster", cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    commands: list[str] = []
    try:
        async with asyncio.timeout(90):
            while line := (await process.stdout.readline()).decode():
                if line.startswith(_LAST):
                    break
                commands += [line.strip()] if line.startswith(_INDENT) else []
        yield commands
    finally:
        process.send_signal(signal.SIGINT)
        rest = (await process.stdout.read()).decode()
        assert await process.wait() == 0, rest
    assert rest.strip() == "ended; nothing is left of it"


async def test_every_command_shows_what_it_is_for(printed: list[str]) -> None:
    shown = {command: await typed(printed, command) for command in printed if not command.startswith("export")}

    def of(start: str) -> str:
        [found] = [output for command, output in shown.items() if command.startswith(start)]
        return found

    assert "istio.web" in of("kubectl get secrets")
    assert "spiffe://cluster.local/ns/default/sa/web" in of("ca-cli inspect secret/istio.web")
    assert "istio.io/key-and-cert" in of("kubectl delete secret")
    assert "istio.web" not in of("kubectl delete serviceaccount").partition("deleted")[2]
    assert "istio-ca-root-cert" in of("kubectl create namespace shop")
    assert "CA certificate" in of("ca-cli inspect configmap")
    assert of("kubectl create token").count(".") == 2
    assert "service-account" in of("ca-cli log")


async def typed(printed: list[str], command: str) -> str:
    """What a command prints in a shell where the exports were typed first."""
    exports = [line for line in printed if line.startswith("export")]
    script = "\n".join((*exports, "set -e", command.replace("sleep 1", "sleep 3")))  # the machine may be busy
    shell = await asyncio.create_subprocess_exec(
        "bash",
        "-c",
        script,
        env=os.environ | {"NO_COLOR": "1"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await shell.communicate()
    assert shell.returncode == 0, f"{command}: {out.decode()}"
    return out.decode()
