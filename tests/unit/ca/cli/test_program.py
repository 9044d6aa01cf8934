"""`ca-cli` as a program: quick help, one sentence per error, colours for people only."""

from __future__ import annotations

import importlib.metadata
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from ca.cli.program import app
from istio_auth.pem import write_certificates
from tests.command import ca_cli
from tests.fakes.authority import FakeAuthority

COMMANDS = ["issue", "inspect", "verify", "trust-bundle", "log"]
GROUPS = {"token": ["create", "list", "revoke"], "agent": ["list", "evict"]}
EVERY_COMMAND = [[name] for name in COMMANDS] + [[group, name] for group, names in GROUPS.items() for name in names]
PROGRAM = [sys.executable, "-c", "from ca.cli import main; main()"]


def test_help_names_every_command_and_the_exit_codes() -> None:
    done = ca_cli("--help")
    assert done.code == 0
    for name in [*COMMANDS, *GROUPS]:
        assert f"  {name}" in done.out
    assert "3 checked and refused" in " ".join(done.out.split())


def test_it_tells_its_version() -> None:
    done = ca_cli("--version")
    assert (done.code, done.out.strip()) == (0, importlib.metadata.version("istio-auth"))


@pytest.mark.parametrize("command", EVERY_COMMAND, ids=" ".join)
def test_every_command_has_help_and_can_print_json(command: list[str]) -> None:
    done = ca_cli(*command, "--help")
    assert done.code == 0
    assert "--output" in done.out
    assert "table|json" in done.out


def test_no_option_takes_a_secret() -> None:
    def options(command: object) -> set[str]:
        children = getattr(command, "commands", {}).values()
        own = {name for parameter in getattr(command, "params", ()) for name in parameter.opts}
        return own.union(*map(options, children))

    assert not options(get_command(app)) & {"--token", "--key", "--password", "--private-key", "--secret"}


def test_help_is_quick_because_it_loads_nothing_that_works() -> None:
    probe = "import json, sys\nfrom ca.cli.program import app\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, check=True, timeout=60)
    loaded = {name.partition(".")[0] for name in json.loads(done.stdout)}
    assert not loaded & {"cryptography", "grpc", "google", "rich", "asyncio", "aiohttp", "structlog", "ssl"}


def test_without_a_command_it_says_what_there_is() -> None:
    assert ca_cli().code == 2
    assert ca_cli("frobnicate").code == 2


def test_a_broken_pipe_is_no_crash() -> None:
    shell = f"{sys.executable} -c 'from ca.cli import main; main()' --help | head -c 1"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=True, timeout=60)
    assert "Traceback" not in done.stderr


def test_what_the_machine_refuses_is_told_in_one_line(tmp_path: Path) -> None:
    occupied = tmp_path / "occupied"
    occupied.write_text("a file")
    done = ca_cli("token", "create", "node-1", "--state-folder", occupied / "state")
    assert (done.code, done.out) == (2, "")
    assert done.err.count("\n") == 1
    assert done.err.startswith("ca-cli: ")


def test_a_terminal_gets_colours_and_no_line_is_folded(tmp_path: Path) -> None:
    long = "/" + "a" * 300
    file = tmp_path / "chain.pem"
    file.write_bytes(write_certificates(FakeAuthority().chain(FakeAuthority().leaf(long))))
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "40"}
    environment.pop("NO_COLOR", None)
    with subprocess.Popen([*PROGRAM, "inspect", str(file)], stdout=follower, env=environment) as program:
        os.close(follower)
        shown = b""
        try:
            while part := os.read(leader, 1 << 16):
                shown += part
        except OSError:  # how a terminal tells that its last writer is gone
            pass
        assert program.wait(60) == 0
    os.close(leader)
    assert b"\x1b[" in shown
    assert f"spiffe://cluster.local{long}".encode() in shown
