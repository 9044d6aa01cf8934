"""State and secrets on disk: whole or not at all, and for their owner's eyes."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from istio_auth.errors import ConfigurationError, ConflictError, MissingError, NotReady
from istio_auth.files import (
    FileLock,
    atomic_write,
    private_folder,
    read_bounded,
    read_secret,
    refuse_exposed,
    remove_leftovers,
)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
@pytest.mark.parametrize("mode", [0o600, 0o644, 0o640])
def test_a_file_has_exactly_the_mode_asked_for_whatever_the_umask(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        atomic_write(tmp_path / "a", b"content", mode=mode)
    finally:
        os.umask(before)
    assert mode_of(tmp_path / "a") == mode
    assert (tmp_path / "a").read_bytes() == b"content"


def test_a_rewritten_file_takes_the_mode_of_the_new_one(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"old")
    (tmp_path / "key").chmod(0o644)
    atomic_write(tmp_path / "key", b"new", mode=0o600)
    assert mode_of(tmp_path / "key") == 0o600


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_content_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def full(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    path = tmp_path / "state.json"
    atomic_write(path, b"old")
    where: dict[str, tuple[object, str]] = {
        "write": (os, "fchmod"),
        "fsync": (os, "fsync"),
        "replace": (Path, "replace"),
    }
    with monkeypatch.context() as patch:
        patch.setattr(*where[step], full)
        with pytest.raises(NotReady):
            atomic_write(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    atomic_write(path, b"new")
    assert path.read_bytes() == b"new"


def test_file_and_folder_are_synced_and_the_file_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[str, bool]] = []
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        kind = "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        synced.append((kind, (tmp_path / "a").exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    atomic_write(tmp_path / "a", b"x")
    assert synced == [("file", False), ("folder", True)]


def test_a_missing_folder_is_a_mistake_of_the_operator(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError):
        atomic_write(tmp_path / "none" / "a", b"x")


def test_what_a_killed_write_left_behind_is_swept_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / ".state.json.0123456789abcdef.tmp").write_bytes(b"half")
    atomic_write(tmp_path / "state.json", b"whole")
    (tmp_path / "notes.tmp").write_bytes(b"not ours")
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.tmp", "state.json"]


def test_a_reader_tells_not_there_from_could_not_look(tmp_path: Path) -> None:
    with pytest.raises(MissingError):
        read_bounded(tmp_path / "none", 10)
    (tmp_path / "link").symlink_to(tmp_path / "away")
    (tmp_path / "file").write_bytes(b"x")
    os.mkfifo(tmp_path / "fifo")
    for path in ("link", "file/below", "fifo", "."):
        with pytest.raises(ConfigurationError):
            read_bounded(tmp_path / path, 10)


def test_a_file_is_read_up_to_its_limit_and_not_beyond(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 10)
    assert read_bounded(tmp_path / "a", 10) == b"x" * 10
    with pytest.raises(ConfigurationError):
        read_bounded(tmp_path / "a", 9)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o602, 0o610, 0o644])
def test_a_secret_that_others_can_reach_is_refused_until_the_named_command_was_run(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "a key.pem"
    path.write_bytes(b"the content")
    path.chmod(mode)
    for check in (lambda: refuse_exposed(path), lambda: read_secret(path, 100)):
        with pytest.raises(ConfigurationError) as refused:
            check()
        assert f"chmod 600 '{path}'" in str(refused.value)
        assert "the content" not in str(refused.value)
    path.chmod(0o600)
    refuse_exposed(path)
    assert read_secret(path, 100) == b"the content"


def test_a_secret_that_is_not_there_is_missing_and_not_exposed(tmp_path: Path) -> None:
    with pytest.raises(MissingError):
        refuse_exposed(tmp_path / "none")
    with pytest.raises(MissingError):
        read_secret(tmp_path / "none", 10)


def test_a_private_folder_is_made_with_its_parents_and_taken_again(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "state"
    assert private_folder(path) == path
    assert mode_of(path) == 0o700
    assert private_folder(path) == path


def test_an_open_folder_is_refused_until_it_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.mkdir(mode=0o755)
    with pytest.raises(ConfigurationError) as refused:
        private_folder(path)
    assert f"chmod 700 {path}" in str(refused.value)
    path.chmod(0o700)
    private_folder(path)


def test_a_file_in_the_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state").write_bytes(b"")
    for path in (tmp_path / "state", tmp_path / "state" / "below"):
        with pytest.raises(ConfigurationError):
            private_folder(path)


@pytest.mark.root
def test_a_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    path = private_folder(tmp_path / "state")
    os.chown(path, 12345, 12345)
    with pytest.raises(ConfigurationError):
        private_folder(path)


def test_a_lock_is_for_one_holder_at_a_time(tmp_path: Path) -> None:
    with FileLock(tmp_path / "lock"):
        with pytest.raises(ConflictError), FileLock(tmp_path / "lock"):
            pass
        assert mode_of(tmp_path / "lock") == 0o600
    with FileLock(tmp_path / "lock"):
        pass


def test_a_lock_file_in_no_folder_is_a_mistake_of_the_operator(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError), FileLock(tmp_path / "none" / "lock"):
        pass
