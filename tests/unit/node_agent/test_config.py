"""The agent's settings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from istio_auth.daemon.settings import Sources, load
from istio_auth.door import UnixCaller
from istio_auth.door.unix_socket import listening_socket
from istio_auth.errors import ConfigurationError, NotAuthorized
from node_agent.config import PREFIX, Config, SocketSettings
from node_agent.sockets import admission

FILE = """
ca_address = "ca.internal:15012"
name = "node-1"

[[socket]]
path = "/run/web.sock"
name = "web"
mode = "0600"
uids = [1000, 1001]

[[socket]]
path = "db.sock"
name = "db"
"""


def loaded(tmp_path: Path, text: str) -> Config:
    file = tmp_path / "node-agent.toml"
    file.write_text(text)
    return load(Config, Sources(file, file_required=True, prefix=PREFIX)).config


def test_the_file_says_what_holds(tmp_path: Path) -> None:
    config = loaded(tmp_path, FILE)
    assert str(config.spiffe_id) == "spiffe://cluster.local/agent/node-1"
    web, db = config.sockets
    assert (web.permissions, web.uids) == (0o600, (1000, 1001))
    assert db.path == tmp_path / "db.sock"


def test_without_sockets_in_the_file_there_is_one_for_everybody(tmp_path: Path) -> None:
    (only,) = loaded(tmp_path, 'name = "n"\nrun_folder = "run"').sockets
    assert only == SocketSettings(tmp_path / "run/agent.sock", "agent")
    assert only.permissions == 0o666


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ('"ca.internal:15012"', '":15012"'),
        ('"ca.internal:15012"', '"ca.internal:0"'),
        ('"node-1"', '"node/1"'),
        ('"node-1"', '""'),
        ('name = "db"', 'name = "web"'),
        ('"db.sock"', '"/run/web.sock"'),
        ('name = "db"', 'name = "d b"'),
        ('"0600"', '"rw"'),
        ('"0600"', '"0888"'),
        ("[1000", "[-1"),
        ("uids", "uid"),
    ],
)
def test_a_mistake_in_one_place_is_refused(tmp_path: Path, good: str, bad: str) -> None:
    assert good in FILE
    with pytest.raises(ConfigurationError):
        loaded(tmp_path, FILE.replace(good, bad))
    loaded(tmp_path, FILE)


def test_a_socket_at_a_path_that_no_socket_can_have_is_found_before_the_start() -> None:
    with pytest.raises(ConfigurationError, match="too long for a Unix socket"):
        SocketSettings(Path(f"/run/{'x' * 120}.sock"), "web")


def test_a_socket_in_a_folder_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=f"there is no folder {tmp_path}/none"):
        listening_socket(tmp_path / "none/web.sock", 0o666)


def test_a_socket_with_uids_is_for_them_alone() -> None:
    settings = SocketSettings(Path("/s"), "s", uids=(7,))
    admit = admission(settings)
    assert admit is not None
    admit(UnixCaller(7, 1, 1, "s"))
    with pytest.raises(NotAuthorized):
        admit(UnixCaller(0, 7, 7, "s"))
    assert admission(replace(settings, uids=())) is None


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ('join_token_file = "token"', "join_token_file exclude"),
        ('mounted = "/certificates"', "mounted exclude"),
        (
            'registrations = "r.toml"\n[istio_ca]\nserver_name = "istiod"\ntoken_file = "token"',
            "for another one, name istio_ca.token_file",
        ),
    ],
)
def test_an_agent_in_a_pod_has_one_way_to_its_svid(tmp_path: Path, other: str, words: str) -> None:
    in_a_pod = 'name = "n"\nca_token_file = "/var/run/secrets/istio-auth/token"\n'
    assert loaded(tmp_path, in_a_pod).ca_token_file == Path("/var/run/secrets/istio-auth/token")
    with pytest.raises(ConfigurationError, match=words):
        loaded(tmp_path, in_a_pod + other)


def test_who_serves_what_is_mounted_asks_no_kubelet_who_calls(tmp_path: Path) -> None:
    mounted, kubelet = 'mounted = "/certificates"\n', '[kubernetes]\nkubelet = "localhost:10250"\n'
    assert loaded(tmp_path, mounted).mounted
    assert loaded(tmp_path, kubelet).kubernetes.kubelet
    with pytest.raises(ConfigurationError, match=r"mounted and kubernetes\.kubelet exclude each other"):
        loaded(tmp_path, mounted + kubelet)
