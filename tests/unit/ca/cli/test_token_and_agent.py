"""`ca-cli token` and `ca-cli agent`: inviting nodes, and being rid of them."""

from __future__ import annotations

import stat
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from ca.agents.folder import AgentFolder
from ca.agents.join_token import JoinTokenFolder, hash_of
from istio_auth.files import private_folder
from istio_auth.spiffe_id import SpiffeID
from istio_auth.system_clock import SystemClock
from tests.command import ca_cli

NODE_KEY = "ab" * 32


@pytest.fixture
def agents(state: Path) -> AgentFolder:
    private_folder(state)
    now = SystemClock().now()
    folder = AgentFolder(state / "agents")
    folder.enrol("node-1", NODE_KEY, invited_at=now, now=now)
    folder.enrol("node-2", NODE_KEY, invited_at=now, now=now)
    folder.note_identities("node-1", [SpiffeID.parse("spiffe://cluster.local/web")])
    return folder


def test_a_token_is_printed_alone_so_that_a_script_can_take_it(state: Path) -> None:
    done = ca_cli("token", "create", "node-1", "--state-folder", state)
    assert done.code == 0
    [token] = done.out.splitlines()
    kept = JoinTokenFolder(state / "tokens").find(hash_of(token))
    assert kept.agent == "node-1"
    assert kept.id in done.err
    assert token not in done.err


def test_a_token_can_go_to_a_file_for_our_eyes_only(state: Path, tmp_path: Path) -> None:
    file = tmp_path / "token"
    done = ca_cli("token", "create", "node-1", "--out", file, "--state-folder", state)
    assert (done.code, done.out) == (0, "")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert JoinTokenFolder(state / "tokens").find(hash_of(file.read_text().strip())).agent == "node-1"


def test_a_token_that_could_not_be_written_enrols_nobody(state: Path, tmp_path: Path) -> None:
    done = ca_cli("token", "create", "node-1", "--out", tmp_path / "nowhere/token", "--state-folder", state)
    assert (done.code, done.out) == (2, "")
    assert JoinTokenFolder(state / "tokens").list() == []


def test_scripts_get_the_token_and_its_end(state: Path) -> None:
    made = ca_cli("token", "create", "node-1", "--ttl", "1h", "--state-folder", state, "-o", "json").json
    assert JoinTokenFolder(state / "tokens").find(hash_of(made["token"])).id == made["id"]
    created, expires = (datetime.fromisoformat(made[name]) for name in ("created_at", "expires_at"))
    assert expires - created == timedelta(hours=1)


def test_no_list_shows_a_token(state: Path) -> None:
    token = ca_cli("token", "create", "node-1", "--state-folder", state).out.strip()
    for output in ("table", "json"):
        done = ca_cli("token", "list", "--state-folder", state, "-o", output)
        assert done.code == 0
        assert "node-1" in done.out
        assert token not in done.out
    [listed] = ca_cli("token", "list", "--state-folder", state, "-o", "json").json
    assert (listed["agent"], listed["ended"]) == ("node-1", False)


def test_a_revoked_token_is_gone(state: Path) -> None:
    made = ca_cli("token", "create", "node-1", "--state-folder", state, "-o", "json").json
    other = ca_cli("token", "create", "node-2", "--state-folder", state, "-o", "json").json
    assert ca_cli("token", "revoke", made["id"], "--state-folder", state).code == 0
    assert [one["id"] for one in ca_cli("token", "list", "--state-folder", state, "-o", "json").json] == [other["id"]]
    again = ca_cli("token", "revoke", made["id"], "--state-folder", state)
    assert (again.code, again.out) == (1, "")
    assert ca_cli("token", "revoke", other["id"], "--state-folder", state, "-o", "json").json["agent"] == "node-2"
    assert "no unused" in ca_cli("token", "list", "--state-folder", state).out


@pytest.mark.parametrize(
    "arguments",
    [
        ["token", "create", "no/name"],
        ["token", "create", ".."],
        ["token", "create", "n", "--ttl", "8d"],
        ["token", "create", "n", "--ttl", "0s"],
        ["token", "create"],
        ["token", "revoke", "abc"],
        ["token", "frobnicate"],
        ["agent", "evict", "no/name"],
        ["agent"],
        ["token"],
    ],
    ids=" ".join,
)
def test_wrong_usage_has_its_own_exit_code(state: Path, agents: AgentFolder, arguments: list[str]) -> None:
    more = ["--state-folder", str(state)] if len(arguments) > 2 else []
    assert ca_cli(*arguments, *more).code == 2


@pytest.mark.parametrize(
    "arguments",
    ["token list", "token revoke abcdefgh", "agent list", "agent evict n", "trust-bundle", "log"],
)
def test_a_folder_without_ca_is_told_as_such(state: Path, arguments: str) -> None:
    done = ca_cli(*arguments.split(), "--state-folder", state)
    assert (done.code, done.out) == (2, "")
    assert str(state) in done.err
    assert not state.exists()


def test_agents_are_listed_with_what_is_known_of_them(state: Path, agents: AgentFolder) -> None:
    end = SystemClock().now() + timedelta(hours=1)
    agents.note_svid("node-1", end)
    one, two = ca_cli("agent", "list", "--state-folder", state, "-o", "json").json
    assert (one["name"], one["node_key_sha256"], one["evicted_at"]) == ("node-1", NODE_KEY, None)
    assert one["identities"] == ["spiffe://cluster.local/web"]
    assert one["svid_not_after"] == f"{end:%Y-%m-%dT%H:%M:%SZ}"
    assert (two["name"], two["svid_not_after"]) == ("node-2", None)
    assert "node-2" in ca_cli("agent", "list", "--state-folder", state).out


def test_an_evicted_agent_stays_out_with_its_tokens(state: Path, agents: AgentFolder) -> None:
    ca_cli("token", "create", "node-1", "--state-folder", state)
    ca_cli("token", "create", "node-2", "--state-folder", state)
    done = ca_cli("agent", "evict", "node-1", "--state-folder", state, "-o", "json")
    assert (done.code, done.json["tokens_revoked"]) == (0, 1)
    assert done.json["evicted_at"]
    assert AgentFolder(state / "agents").find("node-1").evicted_at is not None
    assert AgentFolder(state / "agents").find("node-2").evicted_at is None
    assert [one["agent"] for one in ca_cli("token", "list", "--state-folder", state, "-o", "json").json] == ["node-2"]
    assert "evicted" in ca_cli("agent", "list", "--state-folder", state).out


def test_nobody_evicts_who_never_enrolled(state: Path, agents: AgentFolder) -> None:
    done = ca_cli("agent", "evict", "node-9", "--state-folder", state)
    assert (done.code, done.out) == (1, "")
    assert "node-9" in done.err
