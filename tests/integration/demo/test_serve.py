"""`make demo-serve` prints commands that do what it says of them, and Ctrl-C ends everything."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from asyncio.subprocess import DEVNULL, PIPE, create_subprocess_shell
from dataclasses import dataclass
from itertools import pairwise

import pytest

from tests.integration.demo.demo import running_demo

FRONTEND = "spiffe://cluster.local/ns/demo/sa/frontend"
BACKEND = "spiffe://cluster.local/ns/demo/sa/backend"


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str

    def answered(self, caller: str) -> bool:
        answer = json.loads(self.out) if self.code == 0 else {}
        return (answer.get("workload"), answer.get("caller")) == ("backend", caller)

    @property
    def closed(self) -> bool:
        """Whether curl found its connection closed; it says so in several ways."""
        return self.code in {16, 52, 55, 56} and not self.out

    def fails(self, pattern: str) -> bool:
        return self.code != 0 and re.search(pattern, self.err) is not None

    def shows(self, *patterns: str) -> bool:
        return self.code == 0 and all(re.search(pattern, self.out) for pattern in patterns)


@pytest.mark.parametrize("proof", ["socket", pytest.param("uid", marks=pytest.mark.root)])
async def test_every_command_it_prints_does_what_it_says(proof: str) -> None:
    async with running_demo("--serve", "--proof", proof) as demo:
        assert await demo.prints("Ctrl-C"), demo.lines
        said = [line.strip() for line in demo.lines]
        commands = {about[2:]: command for about, command in pairwise(said) if about.startswith("# ")}
        done = {about: await run(command) for about, command in commands.items() if not command.startswith("tail -f")}
        holds = judged(done)
        assert [about for about, holding in holds.items() if not holding] == [], done
        assert len(done) == len(holds) == len(commands) - 1
        assert await follows(commands["logs of everything"], "certificate issued")
        assert await demo.end(signal.SIGINT) == 0
        assert not demo.processes()
        assert not list(demo.folder.iterdir())


def judged(done: dict[str, Done]) -> dict[str, bool]:
    """Whether each command had the outcome that its own line promises."""
    unread = dict(done)

    def the(start: str) -> Done:
        (about,) = [about for about in unread if about.startswith(start)]
        return unread.pop(about)

    holds = {
        "the frontend": the("the frontend, which is allowed").answered(FRONTEND),
        "the intruder": the("the intruder, which is not").shows("connection termination"),
        "without TLS": the("without TLS: closed").closed,
        "without a certificate": the("by TLS without a certificate: closed").closed,
        "the operator's": the("with a certificate of the frontend").answered(FRONTEND),
        "a foreign CA's": the("with one of a foreign CA, under the same name: closed").closed,
        "the wrong server": the("a server with the wrong identity").shows("remote connection failure"),
        "permissive": the("the PERMISSIVE port").answered(""),
        "no token": the("the port that asks for a token, without one").shows("Jwt is missing"),
        "a token": (token := the("with a token")).answered(FRONTEND) and token.shows('"x-user", "alice"'),
        "policy": the("whose tokens it takes").shows("kind: RequestAuthentication"),
        "the database": the("through the frontend's sidecar: answered").shows(r"^ *server_version"),
        "the database, by the intruder": the("through the intruder's").fails("closed the connection unexpectedly"),
        "presented": the("what the backend's sidecar presents").shows(BACKEND, "serial_number"),
        "verify": the("and whether it would be accepted").shows(f"accepted +yes, as {BACKEND}"),
        "inspect": the("a certificate, in words").shows(FRONTEND, "ends in"),
        "log": the("everything that was issued").shows("join-token", BACKEND, FRONTEND),
        "agents": the("the agents that joined").shows("node-1 +enrolled"),
        "refusals": the("why the backend's sidecar").shows(
            "HTTP_REQUEST", "SAN_matcher", "PEER_DID_NOT_RETURN", "local_issuer"
        ),
        "counters": the("its counters").shows("inbound_web.ssl.fail_verify_san: [1-9]"),
        "what the agent holds": the("what the agent holds").shows(f"Workload {BACKEND}", "renewed in"),
        "a process": the("what a process is to it").shows(f"earns +{BACKEND}"),
        "the CA's metrics": the("the CA's metrics").shows("^istio_"),
        "the agent's metrics": the("the agent's").shows("^istio_"),
    }
    assert not unread
    return holds


async def run(command: str) -> Done:
    """Run one command as a person would, in a shell."""
    process = await create_subprocess_shell(command, stdin=DEVNULL, stdout=PIPE, stderr=PIPE)
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    assert process.returncode is not None
    return Done(process.returncode, out.decode(), err.decode())


async def follows(command: str, text: str) -> bool:
    """Whether a command that never ends shows a text."""
    process = await create_subprocess_shell(f"exec {command}", stdin=DEVNULL, stdout=PIPE)
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            while line := await process.stdout.readline():
                if text in line.decode():
                    return True
        return False
    finally:
        process.kill()
        await process.wait()
