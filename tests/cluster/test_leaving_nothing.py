"""Nothing outlives a control plane that is left, that fails to start, or whose owner is killed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.build import servers
from tests.cluster.control_plane import ControlPlane
from tests.cluster.server import ServerFailed
from tests.fakes.waiting import until


def processes_in(folder: Path) -> list[str]:
    """The command lines of all processes that work in a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").readlink() == folder:
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:  # it ended, or is not ours
            continue
    return found


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where control planes of this test have their folders."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def command(place: Path) -> Iterator[subprocess.Popen[str]]:
    """`python -m tests.cluster`, started."""
    with subprocess.Popen(
        (sys.executable, "-m", "tests.cluster"), stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        yield process
        process.kill()


def folder_of(command: subprocess.Popen[str]) -> Path:
    """The folder of its control plane, once it runs."""
    assert command.stdout
    for line in command.stdout:
        if found := re.search(r"logs are in (\S+)\.$", line):
            return Path(found[1])
    raise AssertionError("it ended before it had anything to say")


def test_a_server_that_can_not_start_is_quoted_and_takes_all_with_it(place: Path) -> None:
    binaries = place / "binaries"
    binaries.mkdir()
    (binaries / "etcd").symlink_to(servers() / "etcd")
    (binaries / "kube-apiserver").write_text(
        f"#!/bin/sh\nls -d {place}/istio-auth-cluster-*\necho no way >&2\nexit 3\n"
    )
    (binaries / "kube-apiserver").chmod(0o755)
    with (
        pytest.raises(ServerFailed, match="kube-apiserver ended by itself with status 3") as failed,
        ControlPlane(binaries),
    ):
        pass
    *_, folder, words = str(failed.value).splitlines()
    assert words == "no way"
    assert processes_in(Path(folder)) == []
    assert not Path(folder).exists()


def test_a_person_ends_it_with_ctrl_c_and_nothing_is_left(command: subprocess.Popen[str], place: Path) -> None:
    folder = folder_of(command)
    assert len(processes_in(folder)) >= 2
    os.killpg(command.pid, signal.SIGINT)
    assert command.wait(120) == 0
    assert processes_in(folder) == []
    assert list(place.iterdir()) == []


async def test_no_server_outlives_an_owner_that_is_killed(command: subprocess.Popen[str]) -> None:
    folder = folder_of(command)
    assert len(processes_in(folder)) >= 2
    command.kill()
    await until(lambda: not processes_in(folder))
