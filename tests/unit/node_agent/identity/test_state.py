"""What the agent keeps from one start to the next."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from istio_auth.bundle import BundleSet
from istio_auth.errors import ConfigurationError, ConflictError, MissingError
from istio_auth.keys import same_key
from istio_auth.spiffe_id import SpiffeID
from node_agent.identity.state import StateFolder, read_token
from node_agent.trust import KeptTrust, fingerprint
from tests.fakes.authority import FakeAuthority

ME = SpiffeID.parse("spiffe://cluster.local/agent/node-1")


@pytest.fixture
def state(tmp_path: Path) -> StateFolder:
    return StateFolder(tmp_path / "agent")


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


class TestTheNodeKey:
    def test_is_made_once_and_kept_for_our_eyes_only(self, state: StateFolder) -> None:
        key = state.node_key()
        assert same_key(StateFolder(state.path).node_key().public_key(), key.public_key())
        assert mode(state.path / "node-key.pem") == 0o600
        assert mode(state.path) == 0o700

    @pytest.mark.parametrize("content", [b"", b"garbage", b"-----BEGIN PRIVATE KEY-----\nMIGH"])
    def test_that_is_damaged_stops_the_start_and_is_not_replaced(self, state: StateFolder, content: bytes) -> None:
        path = state.path / "node-key.pem"
        state.node_key()
        good = path.read_bytes()
        path.write_bytes(content)
        with pytest.raises(ConfigurationError):
            state.node_key()
        assert path.read_bytes() == content
        path.write_bytes(good)
        state.node_key()

    def test_that_others_can_read_stops_the_start(self, state: StateFolder) -> None:
        state.node_key()
        (state.path / "node-key.pem").chmod(0o640)
        with pytest.raises(ConfigurationError, match=r"chmod 600 [^ ]+`$"):
            state.node_key()
        (state.path / "node-key.pem").chmod(0o600)
        state.node_key()


class TestTheSVID:
    def test_reads_back(self, state: StateFolder, authority: FakeAuthority) -> None:
        svid = FakeAuthority(parent=authority).svid(ME.path)
        assert state.svid(ME) is None
        state.keep_svid(svid)
        found = state.svid(ME)
        assert found is not None
        assert (found.id, found.chain) == (svid.id, svid.chain)
        assert mode(state.path / "svid.pem") == 0o600

    @pytest.mark.parametrize("damage", ["truncated", "garbage", "another's", "another key"])
    def test_that_is_of_no_use_counts_as_not_there(
        self, state: StateFolder, authority: FakeAuthority, damage: str
    ) -> None:
        svid, path = authority.svid(ME.path), state.path / "svid.pem"
        state.keep_svid(svid if damage != "another's" else authority.svid("/agent/node-2"))
        if damage == "truncated":
            path.write_bytes(path.read_bytes()[:-100])
        elif damage == "garbage":
            path.write_bytes(b"\0\xff")
        elif damage == "another key":
            path.write_bytes(authority.svid(ME.path).key_pem() + svid.chain_pem())
        assert state.svid(ME) is None
        state.keep_svid(svid)
        assert state.svid(ME) is not None

    def test_that_others_can_read_stops_the_start(self, state: StateFolder, authority: FakeAuthority) -> None:
        state.keep_svid(authority.svid(ME.path))
        (state.path / "svid.pem").chmod(0o644)
        with pytest.raises(ConfigurationError):
            state.svid(ME)


class TestTheBundles:
    def test_read_back(self, state: StateFolder, authority: FakeAuthority) -> None:
        kept = KeptTrust(BundleSet((authority.bundle(),)), fingerprint(authority.bundle()))
        assert state.trust() is None
        state.keep_trust(kept)
        assert state.trust() == kept

    def test_that_are_damaged_count_as_not_there(self, state: StateFolder) -> None:
        (state.path / "bundles.json").write_text("{")
        assert state.trust() is None


class TestTheToken:
    def test_is_one_word_in_a_file_of_our_own(self, tmp_path: Path) -> None:
        path = tmp_path / "token"
        for given, why in (None, "join_token_file is not set"), (path, f"can not read {path}: No such file"):
            with pytest.raises(MissingError, match=re.escape(why)):
                read_token(given)
        path.touch(0o600)
        with pytest.raises(MissingError, match="is empty"):
            read_token(path)
        path.write_text("word\n")
        assert read_token(path) == "word"

    @pytest.mark.parametrize("content", [b"two words", b"caf\xc3\xa9", b"one\ntwo", b"x" * 20_000])
    def test_that_is_none_is_refused_without_being_told(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "token"
        path.touch(0o600)
        path.write_bytes(content)
        with pytest.raises(ConfigurationError) as refused:
            read_token(path)
        assert content.decode("latin-1") not in str(refused.value)

    def test_that_others_can_read_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "token"
        path.write_text("word")
        path.chmod(0o604)
        with pytest.raises(ConfigurationError):
            read_token(path)

    def test_that_was_used_is_known_again_and_not_kept(self, state: StateFolder) -> None:
        assert not state.is_spent("word")
        state.note_spent("word")
        assert state.is_spent("word")
        assert not state.is_spent("other")
        assert b"word" not in (state.path / "spent-token").read_bytes()


def test_two_agents_can_not_share_a_folder(state: StateFolder) -> None:
    with state.lock, pytest.raises(ConflictError), StateFolder(state.path).lock:
        pass
    with StateFolder(state.path).lock:
        pass


def test_a_folder_that_others_can_enter_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o755)
    with pytest.raises(ConfigurationError):
        StateFolder(tmp_path / "open")


def test_what_a_killed_agent_left_half_written_is_removed(state: StateFolder) -> None:
    (state.path / ".svid.pem.0123.tmp").write_text("half")
    state.tidy()
    assert not list(state.path.glob(".*.tmp"))
