"""Bind mounts, for real: as root, in a mount namespace of their own, so that nothing of this machine changes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from istio_auth.errors import NotReady
from node_agent.csi.mounts import BindMounts

LIVE = """
import json, socket, sys
from pathlib import Path
from node_agent.csi.mounts import BindMounts

source, target = Path(sys.argv[1]), Path(sys.argv[2])
mounts, seen = BindMounts(), {}
mounts.unmount(target)  # nothing is there yet

def mounted():
    rows = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [sorted(row[5].split(",")) for row in rows if row[4] == str(target)]

mounts.mount(source, target)
mounts.mount(source, target)
seen["options"] = mounted()
seen["is_mounted"] = mounts.is_mounted(source, target)
seen["is_another_mounted"] = mounts.is_mounted(source.parent, target)
try:
    (target / "mine").write_text("x")
except OSError as error:
    seen["write"] = error.strerror
(source / "later").write_text("seen")
seen["later"] = (target / "later").read_text()
listener = socket.socket(socket.AF_UNIX)
listener.bind(str(source / "s"))
listener.listen()
with socket.socket(socket.AF_UNIX) as client:
    client.connect(str(target / "s"))  # a socket can be used where nothing can be written
    seen["connected"] = True
other = source.parent / "other"
other.mkdir()
(other / "name").write_text("other")
mounts.mount(other, target)
seen["replaced"] = [len(mounted()), sorted(path.name for path in target.iterdir())]
mounts.unmount(target)
mounts.unmount(target)
seen["left"] = [target.exists(), len(mounted()), (source / "later").exists()]
print(json.dumps(seen))
"""


def in_a_namespace(script: str, *words: str) -> dict[str, Any]:
    """What the script prints that runs in a mount namespace of its own."""
    command = ["unshare", "--mount", "--propagation", "private", sys.executable, "-c", script, *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.root
def test_a_bound_folder_is_seen_for_reading_only_and_is_gone_afterwards(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    seen = in_a_namespace(LIVE, str(source), str(target))
    (options,) = seen["options"]
    assert {"ro", "nosuid", "nodev", "noexec"} <= set(options)
    assert (seen["is_mounted"], seen["is_another_mounted"]) == (True, False)
    assert seen["write"] == "Read-only file system"
    assert seen["later"] == "seen"
    assert seen["connected"]
    assert seen["replaced"] == [1, ["name"]]
    assert seen["left"] == [False, 0, True]


def test_what_can_not_be_mounted_leaves_nothing_and_says_why(tmp_path: Path) -> None:
    target = tmp_path / "target"
    with pytest.raises(NotReady, match=r"can not mount a volume at .*target"):
        BindMounts().mount(tmp_path / "not there", target)
    assert not target.exists()


@pytest.mark.root
def test_a_folder_with_content_at_the_target_is_never_removed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    (target / "somebody's").mkdir(parents=True)
    with pytest.raises(NotReady, match=r"can not unmount .*target: Directory not empty"):
        BindMounts().unmount(target)
    assert (target / "somebody's").exists()
