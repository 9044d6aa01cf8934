"""The store of an authority: nothing there is one thing, could not look is another, and writers do not overrun."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from ca.authority.state import AuthorityState, IssuerState
from ca.authority.store import FileAuthorityStore
from istio_auth.errors import ConfigurationError, ConflictError, IstioAuthError, MissingError, NotReady
from istio_auth.spiffe_id import TrustDomain
from tests.fakes.authority import FakeAuthority
from tests.fakes.authority_store import MemoryAuthorityStore

LOCAL = TrustDomain("cluster.local")
ROOT, OTHER = FakeAuthority(), FakeAuthority()
STATE = AuthorityState(LOCAL, IssuerState(ROOT.certificate, ROOT.certificate, key=ROOT.key))
OTHER_STATE = AuthorityState(LOCAL, IssuerState(OTHER.certificate, OTHER.certificate, key=OTHER.key))


@pytest.fixture
def store(tmp_path: Path) -> FileAuthorityStore:
    return FileAuthorityStore(tmp_path / "ca")


def test_what_is_stored_comes_back_and_nothing_before_that(store: FileAuthorityStore) -> None:
    assert store.load() is None
    written = store.store(STATE, expected=None)
    assert store.load() == written
    assert written.value == STATE


def test_a_version_that_is_no_longer_stored_is_not_overwritten(store: FileAuthorityStore) -> None:
    first = store.store(STATE, expected=None)
    with pytest.raises(ConflictError):
        store.store(OTHER_STATE, expected=None)
    second = store.store(OTHER_STATE, expected=first.version)
    with pytest.raises(ConflictError):
        store.store(STATE, expected=first.version)
    assert store.load() == second


def test_the_same_content_has_the_same_version_wherever_it_was_written(store: FileAuthorityStore) -> None:
    assert store.store(STATE, expected=None).version == MemoryAuthorityStore().store(STATE, expected=None).version


def test_folder_and_file_are_for_nobody_else(store: FileAuthorityStore, tmp_path: Path) -> None:
    store.store(STATE, expected=None)
    assert stat.S_IMODE((tmp_path / "ca").stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "ca").iterdir()} == {0o600}


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_file_that_others_may_read_is_refused_with_the_command_that_mends_it(
    store: FileAuthorityStore, tmp_path: Path, mode: int
) -> None:
    store.store(STATE, expected=None)
    path = tmp_path / "ca/authority.json"
    path.chmod(mode)
    with pytest.raises(ConfigurationError, match=f"chmod 600 {path}"):
        store.load()
    path.chmod(0o600)
    assert store.load() is not None


def test_a_folder_that_others_may_enter_is_refused_before_anything_is_written(
    store: FileAuthorityStore, tmp_path: Path
) -> None:
    (tmp_path / "ca").mkdir(mode=0o755)
    with pytest.raises(ConfigurationError, match="chmod 700"):
        store.store(STATE, expected=None)
    assert list((tmp_path / "ca").iterdir()) == []
    (tmp_path / "ca").chmod(0o700)
    store.store(STATE, expected=None)


def test_only_one_process_holds_a_store(store: FileAuthorityStore, tmp_path: Path) -> None:
    second = FileAuthorityStore(tmp_path / "ca")
    with store.hold(), pytest.raises(NotReady), second.hold():
        pass
    with second.hold():
        pass


def test_while_one_holds_a_store_others_read_it_and_do_not_write(store: FileAuthorityStore, tmp_path: Path) -> None:
    second = FileAuthorityStore(tmp_path / "ca")
    with store.hold():
        first = store.store(STATE, expected=None)
        assert second.load() == first
        with pytest.raises(NotReady):
            second.store(OTHER_STATE, expected=first.version)
    assert second.store(OTHER_STATE, expected=first.version).value == OTHER_STATE


def test_what_a_killed_write_left_behind_goes_when_the_store_is_next_held(
    store: FileAuthorityStore, tmp_path: Path
) -> None:
    store.store(STATE, expected=None)
    leftover = tmp_path / "ca/.authority.json.0123.tmp"
    leftover.write_bytes(b"half of a st")
    with store.hold():
        assert not leftover.exists()
    assert store.load() is not None


@pytest.mark.parametrize("damage", ["garbage", "truncated", "folder", "dangling link", "huge"])
def test_what_can_not_be_read_is_an_error_and_never_nothing(
    store: FileAuthorityStore, tmp_path: Path, damage: str
) -> None:
    store.store(STATE, expected=None)
    path = tmp_path / "ca/authority.json"
    content = path.read_bytes()
    match damage:
        case "garbage":
            path.write_bytes(b"\0" * 100)
        case "truncated":
            path.write_bytes(content[:-20])
        case "folder":
            path.unlink()
            path.mkdir()
        case "dangling link":
            path.unlink()
            path.symlink_to(tmp_path / "elsewhere")
        case "huge":
            path.write_bytes(b" " * (5 << 20))
    with pytest.raises(ConfigurationError, match=str(path)):
        store.load()


@pytest.mark.parametrize("foreign", [OSError("no network"), RuntimeError("library"), MissingError("no folder")])
def test_whatever_an_adapter_meets_it_is_not_taken_for_nothing(foreign: Exception) -> None:
    store = MemoryAuthorityStore()

    def fail() -> None:
        raise foreign

    store.reading = fail
    with pytest.raises(NotReady):
        store.load()
    store.reading = lambda: None
    assert store.load() is None


def test_whatever_an_adapter_meets_in_writing_is_an_error_of_ours() -> None:
    store = MemoryAuthorityStore()

    def fail() -> None:
        raise OSError("no network")

    store.writing = fail
    with pytest.raises(IstioAuthError) as caught:
        store.store(STATE, expected=None)
    assert isinstance(caught.value, NotReady)
