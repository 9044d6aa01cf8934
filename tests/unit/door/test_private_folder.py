"""Private folders: for their owner alone, gone with their process, and swept up after one that was killed."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

from istio_auth.door import Door
from istio_auth.door.unix_socket import PrivateFolder, sweep_private_folders

_KILLED = """
import os, pathlib, signal, sys
from istio_auth.door.unix_socket import PrivateFolder
PrivateFolder(pathlib.Path(sys.argv[1])).socket_path("server").touch()
os.kill(os.getpid(), signal.SIGKILL)
"""


def left_by_a_killed_process(parent: Path, *, age: float) -> Path:
    subprocess.run([sys.executable, "-c", _KILLED, parent], check=False, timeout=60)
    (folder,) = folders(parent)
    made = folder.stat().st_mtime - age
    os.utime(folder, (made, made))
    return folder


def folders(parent: Path) -> list[Path]:
    return list(parent.iterdir())


def test_it_is_for_its_owner_alone_and_goes_with_all_that_is_in_it(tmp_path: Path) -> None:
    folder = PrivateFolder(tmp_path)
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    folder.socket_path("server").touch()
    folder.remove()
    folder.remove()
    assert folders(tmp_path) == []


async def test_a_door_sweeps_up_what_a_killed_process_left(tmp_path: Path) -> None:
    left = left_by_a_killed_process(tmp_path, age=61)
    async with Door(folder=tmp_path):
        (folder,) = folders(tmp_path)
        assert folder != left


def test_what_is_young_stays_because_its_process_may_be_about_to_lock_it(tmp_path: Path) -> None:
    left = left_by_a_killed_process(tmp_path, age=0)
    sweep_private_folders(tmp_path)
    assert left.exists()


def test_what_is_in_use_stays_and_so_does_what_is_not_ours(tmp_path: Path) -> None:
    folder, other, elsewhere = PrivateFolder(tmp_path), tmp_path / "istio-auth-demo-1", tmp_path / "elsewhere"
    other.mkdir()
    elsewhere.mkdir()
    (tmp_path / "istio-auth-door-link").symlink_to(elsewhere)
    for path in (folder.path, other, elsewhere):
        os.utime(path, (0, 0))
    os.utime(tmp_path / "istio-auth-door-link", (0, 0), follow_symlinks=False)
    sweep_private_folders(tmp_path)
    assert folder.path.exists()
    assert other.exists()
    assert elsewhere.exists()
    folder.remove()
