"""What `make cluster` prints can be typed as it stands, and shows what it says."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path

import pytest

import istio_auth
from tests.cluster.waiting import eventually
from tests.fakes import guard

ROOT = Path(istio_auth.__file__).parent.parent
_INDENT = "    "
_LAST = "Ctrl-C here ends all of it"
_A_MOMENT = " && sleep 1"


@pytest.fixture
async def printed() -> AsyncIterator[list[str]]:
    """The commands that it prints; it runs until the test has ended, and is told to end by Ctrl-C."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.cluster"), cwd=ROOT, stdout=asyncio.subprocess.PIPE, process_group=guard.group()
    )
    assert process.stdout is not None
    commands: list[str] = []
    try:
        async with asyncio.timeout(300):
            while line := (await process.stdout.readline()).decode():
                if line.startswith(_LAST):
                    break
                commands += [line.strip()] if line.startswith(_INDENT) else []
        yield commands
    finally:
        with suppress(ProcessLookupError):  # it has ended by itself
            process.send_signal(signal.SIGINT)
        rest = (await process.stdout.read()).decode()
        assert await process.wait() == 0, rest
    assert rest.strip() == "ended; nothing is left of it"


async def test_every_command_shows_what_it_is_for(printed: list[str]) -> None:
    exports = [line for line in printed if line.startswith("export")]
    commands = [line for line in printed if line not in exports]
    unread = dict(SHOWN)
    for command in commands:
        [start] = [start for start in unread if command.startswith(start)]
        await shows(exports, command, unread.pop(start))
    assert not unread


SHOWN: dict[str, Callable[[str], bool]] = {
    "kubectl create serviceaccount": lambda _: True,
    "kubectl get secrets": lambda output: "istio.web" in output,
    "ca-cli inspect secret/istio.web": lambda output: "spiffe://cluster.local/ns/default/sa/web" in output,
    "kubectl delete secret": lambda output: "istio.io/key-and-cert" in output,
    "kubectl delete serviceaccount": lambda output: "istio.web" not in output,
    "kubectl create namespace shop": lambda output: "istio-ca-root-cert" in output,
    "ca-cli inspect configmap": lambda output: "CA certificate" in output,
    "kubectl label namespace": lambda _: True,
    "kubectl create token": lambda output: output.count(".") == 2,
    "ca-cli log": lambda output: "service-account" in output,
}


async def shows(exports: list[str], command: str, is_shown: Callable[[str], bool]) -> None:
    """Type a command; what a person sees of it a second later, a busy machine shows later."""
    deed, pause, look = command.partition(_A_MOMENT)
    if not pause:
        deed, look = "", command
    if deed:
        code, output = await typed(exports, deed)
        assert code == 0, f"{deed}: {output}"

    async def seen() -> bool:
        last[:] = await typed(exports, look.removeprefix(" && "))
        return last[0] == 0 and is_shown(str(last[1]))

    last: list[object] = []
    try:
        await eventually(seen)
    except TimeoutError:
        raise AssertionError(f"{command}: {last}") from None


async def typed(exports: list[str], command: str) -> tuple[int | None, str]:
    """What a command prints in a shell where the exports were typed first, and its exit code."""
    shell = await asyncio.create_subprocess_exec(
        "bash",
        "-c",
        "\n".join((*exports, command)),
        env=os.environ | {"NO_COLOR": "1"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await shell.communicate()
    return shell.returncode, out.decode()
