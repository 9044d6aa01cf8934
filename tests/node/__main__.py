"""The tests of this folder on a machine of their own: `python -m tests.node [arguments of pytest]`.

Whoever is not root has no such machine; the tests are skipped then.
"""

from __future__ import annotations

import os
import subprocess
import sys

from tests.cluster.build import servers
from tests.fakes.go_module import BuildFailed, tell
from tests.node import machine
from tests.node.build import node_programs


def main() -> int:
    """Build what is missing, and run pytest; its exit code."""
    command = (sys.executable, "-m", "pytest", "-m", "node", *sys.argv[1:])
    if os.geteuid() != 0:
        return subprocess.run(command, check=False).returncode
    try:
        servers()
        node_programs()
    except BuildFailed as error:
        tell(f"error: {error}")
        return 1
    return machine.run(command)


if __name__ == "__main__":
    sys.exit(main())
