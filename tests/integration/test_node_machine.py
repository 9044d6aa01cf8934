"""The machine on which the tests of a node run: whatever is done there, and however it ends, nothing of it is left."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes.waiting import until

pytestmark = pytest.mark.root
_MARK = Path("/var/left-by-a-test")
_RUN = "import sys; from tests.node import machine; sys.exit(machine.run(sys.argv[1:]))"
_SLEEP = ("sleep", str(10**8 + os.getpid()))  # nobody else's: others of these tests may run on the machine
_DEEDS = f"""
import os, pathlib, subprocess, time
from tests.node import machine
machine.cgroup()
pathlib.Path("{_MARK}").touch()
pathlib.Path("/proc/sys/kernel/panic").write_text("77")
subprocess.run(["mount", "-t", "tmpfs", "none", "/srv"], check=True)
subprocess.Popen({list(_SLEEP)}, start_new_session=True)
print("done", flush=True)
"""


def sleeps() -> bool:
    """Whether what it started still runs."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if tuple(path.read_text().rstrip("\0").split("\0")) == _SLEEP:
                return True
        except OSError:  # it has ended
            continue
    return False


def groups(machine: subprocess.Popen[str]) -> list[Path]:
    """The control groups of a machine."""
    return list(Path("/sys/fs/cgroup").rglob(f"istio-auth-node-{machine.pid}"))


def left(machine: subprocess.Popen[str]) -> list[object]:
    """What is there of a machine."""
    mounts = [line for line in Path("/proc/self/mounts").read_text().splitlines() if line.split()[1] == "/srv"]
    return [*mounts, *groups(machine), *filter(Path.exists, [_MARK]), *filter(None, [sleeps()])]


def launched(deeds: str) -> subprocess.Popen[str]:
    """A machine on which this Python runs."""
    command = (sys.executable, "-c", _RUN, sys.executable, "-c", deeds)
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_a_machine_that_ends_leaves_nothing() -> None:
    before = Path("/proc/sys/kernel/panic").read_text()
    with launched(_DEEDS) as machine:
        assert machine.communicate()[0] == "done\n"
    assert machine.returncode == 0
    assert left(machine) == []
    assert Path("/proc/sys/kernel/panic").read_text() == before


async def test_a_machine_whose_owner_is_killed_leaves_nothing_that_the_next_one_does_not_remove() -> None:
    with launched(f"{_DEEDS}\ntime.sleep(1000)") as machine:
        assert machine.stdout
        assert machine.stdout.readline() == "done\n"
        assert sleeps()
        assert groups(machine)
        machine.kill()
    await until(lambda: not sleeps())
    await until(lambda: not any((each / "cgroup.procs").read_text() for each in groups(machine)))
    with launched("") as following:
        following.communicate()
    assert left(machine) == []
