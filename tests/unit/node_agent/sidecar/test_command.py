"""`node-agent sidecar-config`: two ways to say one sidecar, and what neither takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from istio_auth.envoy.bootstrap import sidecar_bootstrap
from istio_auth.envoy.endpoint import HostPort, UnixPath
from istio_auth.envoy.spec import Inbound, Mode, Protocol, SidecarSpec, Upstream
from istio_auth.errors import ConfigurationError
from istio_auth.spiffe_id import SpiffeID
from node_agent.sidecar.command import sidecar_config
from node_agent.sidecar.file import read_sidecar

SELF, PEER = (SpiffeID.parse(f"spiffe://cluster.local/ns/shop/sa/{name}") for name in ("web", "db"))
SPEC = SidecarSpec(
    SELF,
    UnixPath("/run/agent.sock"),
    (Inbound(HostPort("::", 8443), HostPort("127.0.0.1", 8080), Protocol.TCP, Mode.PERMISSIVE, (PEER, SELF)),),
    (Upstream("db", UnixPath("/run/db.sock"), HostPort("db.internal", 8443), (PEER, SELF), Protocol.TCP),),
    HostPort("127.0.0.1", 15000),
)
FLAGS = (
    "--id", str(SELF), "--agent-socket", "/run/agent.sock", "--admin", "127.0.0.1:15000",
    "--inbound", "[::]:8443=127.0.0.1:8080", "--protocol", "tcp", "--mode", "PERMISSIVE",
    "--allow", str(PEER), "--allow", str(SELF),
    "--upstream", f"db/tcp=unix:/run/db.sock->db.internal:8443,{PEER},{SELF}",
)  # fmt: skip
FILE = f"""
id = "{SELF}"
agent_socket = "/run/agent.sock"
admin = "127.0.0.1:15000"

[[inbound]]
listen = "[::]:8443"
forward = "127.0.0.1:8080"
protocol = "tcp"
mode = "PERMISSIVE"
allow = ["{PEER}", "{SELF}"]

[[upstream]]
name = "db"
listen = "unix:/run/db.sock"
connect = "db.internal:8443"
protocol = "tcp"
expect = ["{PEER}", "{SELF}"]
"""
MINIMAL = ("--id", str(SELF), "--agent-socket", "/run/agent.sock")


def run(*arguments: str) -> Result:
    app = typer.Typer(add_completion=False)
    app.command()(sidecar_config)
    return CliRunner().invoke(app, arguments)


def test_flags_and_file_say_the_same(tmp_path: Path) -> None:
    file = tmp_path / "sidecar.toml"
    file.write_text(FILE)
    assert read_sidecar(file) == SPEC
    by_flags, by_file = run(*FLAGS), run("--file", str(file))
    assert json.loads(by_flags.stdout) == json.loads(by_file.stdout) == sidecar_bootstrap(SPEC)
    assert by_flags.stderr == ""


def test_an_upstream_speaks_http_unless_told() -> None:
    printed = run(*MINIMAL, "--upstream", f"db=127.0.0.1:1->10.0.0.1:2,{PEER}")
    upstream = Upstream("db", HostPort("127.0.0.1", 1), HostPort("10.0.0.1", 2), (PEER,))
    assert json.loads(printed.stdout) == sidecar_bootstrap(SidecarSpec(SELF, SPEC.agent_socket, upstreams=(upstream,)))


def test_who_names_no_caller_is_told_that_nobody_is_let_in() -> None:
    told = run(*MINIMAL, "--inbound", "0.0.0.0:8443=127.0.0.1:8080")
    assert told.exit_code == 0
    assert "inbound_8443" in told.stderr
    assert run(*MINIMAL, "--inbound", "0.0.0.0:8443=127.0.0.1:8080", "--mode", "DISABLE").stderr == ""


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param((), id="nothing"),
        pytest.param(MINIMAL, id="no-listener"),
        pytest.param((*MINIMAL[2:], *FLAGS[6:]), id="no-id"),
        pytest.param((*MINIMAL[:2], *FLAGS[6:]), id="no-socket"),
        pytest.param((*FLAGS, "--id", "spiffe://cluster.local/ns/\n"), id="id-with-newline"),
        pytest.param((*FLAGS, "--agent-socket", "run/agent.sock"), id="relative-socket"),
        pytest.param((*FLAGS, "--allow", "web"), id="caller-without-scheme"),
        pytest.param((*FLAGS, "--allow", f"{PEER}/*"), id="caller-with-wildcard"),
        pytest.param((*FLAGS, "--inbound", "8443"), id="inbound-without-application"),
        pytest.param((*FLAGS, "--upstream", "a=127.0.0.1:1->10.0.0.1:1"), id="upstream-without-id"),
        pytest.param((*FLAGS, "--upstream", f"a=127.0.0.1:1->10.0.0.1:1,{PEER},"), id="upstream-with-empty-id"),
        pytest.param((*FLAGS, "--upstream", f"a=127.0.0.1:1,{PEER}"), id="upstream-without-address"),
        pytest.param((*FLAGS, "--upstream", f"a/=127.0.0.1:1->10.0.0.1:1,{PEER}"), id="upstream-with-empty-protocol"),
        pytest.param((*FLAGS, "--upstream", f"a/udp=127.0.0.1:1->10.0.0.1:1,{PEER}"), id="upstream-of-udp"),
        pytest.param((*FLAGS, "--max-connection-age", "long"), id="age"),
        pytest.param((*FLAGS, "--admin", "0.0.0.0:15000"), id="admin-for-everybody"),
        pytest.param((*FLAGS, "--file", "/dev/null"), id="flags-and-file"),
        pytest.param(("--file", "/nowhere/sidecar.toml"), id="no-file"),
    ],
)
def test_bad_flags_are_told_apart_from_a_sidecar(arguments: tuple[str, ...]) -> None:
    told = run(*arguments)
    assert isinstance(told.exception, ConfigurationError)
    assert told.stdout == ""


def test_without_an_agent_all_but_where_secrets_come_from_is_the_same(tmp_path: Path) -> None:
    words = [
        *FLAGS[:2],
        *FLAGS[4:],
        "--agentless",
        "/etc/certs",
        "--output",
        str(tmp_path / "a"),
        "--found-at",
        "/etc/e",
    ]
    assert run(*words).stdout == ""
    file = tmp_path / "sidecar.toml"
    file.write_text(FILE.replace('agent_socket = "/run/agent.sock"', "") + '[agentless]\nfolder = "/etc/certs"\n')
    assert run("--file", str(file), "--output", str(tmp_path / "b"), "--found-at", "/etc/e").stdout == ""
    for name in ("envoy.json", "certificate.json", "roots.json"):
        assert (tmp_path / "a" / name).read_text() == (tmp_path / "b" / name).read_text()

    def without_sources(tree: object) -> object:
        if isinstance(tree, dict):
            return {key: without_sources(value) for key, value in tree.items() if key != "sds_config"}
        if isinstance(tree, list):
            return [
                without_sources(each)
                for each in tree
                if not (isinstance(each, dict) and each.get("name") == "sds-grpc")
            ]
        return tree

    bootstrap = json.loads((tmp_path / "a" / "envoy.json").read_text())
    assert without_sources(bootstrap) == without_sources(sidecar_bootstrap(SPEC))
    assert json.dumps(bootstrap).count('"path": "/etc/e/certificate.json"') == 2
    assert "sds-grpc" not in json.dumps(bootstrap)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--agentless", "/etc/certs"), "--output"),
        (("--agentless", "etc/certs", "--output", "/tmp/x"), "absolute"),
        (("--roots", "/etc/roots.pem", "--output", "/tmp/x"), "folder"),
        (("--agentless", "/etc/certs", "--output", "/tmp/x", "--agent-socket", "/run/agent.sock"), "exclude"),
        (("--agentless", "/etc/certs", "--output", "/tmp/x", "--certificate", str(SELF)), "one certificate"),
        (("--agentless", "/etc/certs", "--output", "/tmp/x", "--allow", "spiffe://other.test/web"), "need an agent"),
        (("--agentless", "/etc/certs", "--found-at", "/etc/e"), "--output"),
    ],
)  # fmt: skip
def test_what_no_envoy_could_follow_is_refused_with_what_to_do(arguments: tuple[str, ...], words: str) -> None:
    told = run(*FLAGS[:2], *FLAGS[4:], *arguments)
    assert isinstance(told.exception, ConfigurationError)
    assert words in str(told.exception)


@pytest.mark.parametrize(("flag", "value"), [("--mode", "strict"), ("--protocol", "udp")])
def test_a_word_that_is_no_choice_is_wrong_usage(flag: str, value: str) -> None:
    assert run(*FLAGS, flag, value).exit_code == 2


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("listen = ", "lisen = "),
        ("allow = ", "allowed = "),
        ('mode = "PERMISSIVE"', 'mode = "permissive"'),
        ('"db.internal:8443"', '"db.internal"'),
        (f'id = "{SELF}"', ""),
        (f'id = "{SELF}"', 'id = "web"'),
        ("[[inbound]]", "[inbound]"),
        ('name = "db"', ""),
        ('name = "db"', "name ="),
        (f'expect = ["{PEER}", "{SELF}"]', f'expect = "{PEER}"'),
        (f'expect = ["{PEER}", "{SELF}"]', "expect = []"),
    ],
)
def test_a_bad_file_is_named(old: str, new: str, tmp_path: Path) -> None:
    file = tmp_path / "sidecar.toml"
    assert old in FILE
    file.write_text(FILE.replace(old, new, 1))
    with pytest.raises(ConfigurationError, match=str(file)):
        read_sidecar(file)
