"""A real agent with real mounts, killed in the middle: what pods see stays, and nothing is left at the end."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.integration.csi.conftest import WEB


@pytest.mark.root
def test_a_killed_agent_finds_its_volumes_again_and_serves_them_without_the_ca() -> None:
    folder = Path(tempfile.mkdtemp(prefix="csi-", dir="/dev/shm"))  # on tmpfs, as on a node
    command = ["unshare", "--mount", "--propagation", "private", sys.executable, "-m"]
    try:
        done = subprocess.run(
            [*command, "tests.integration.csi.killed_plugin", str(folder)],
            capture_output=True,
            text=True,
            timeout=110,
            check=False,
            cwd=Path(__file__).parents[3],
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout.splitlines()[-1]) == {
            "mounted": [2, str(WEB)],
            "after the kill": [2, True, True],
            "left": [0, 0, 0],
            "exit": 0,
            "token in the log": False,
        }
    finally:
        shutil.rmtree(folder)
