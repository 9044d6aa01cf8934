"""What a test starts ends with the process of the test, also if that is killed: by a process group that is watched."""

from __future__ import annotations

import atexit
import functools
import subprocess


class Guard:
    """A process group whose members all end when we do, even if we are killed.

    Its first member waits for the end of a pipe whose other end only we hold, and then kills the group. The kernel's
    own way (PR_SET_PDEATHSIG) would end a program with the thread that started it.

    Args:
        by: the name of the signal; another than KILL for programs that have to end others.
    """

    def __init__(self, by: str = "KILL") -> None:
        script = f"trap '' TERM; read -r _; kill -{by} 0"
        self._process = subprocess.Popen(("/bin/sh", "-c", script), stdin=subprocess.PIPE, process_group=0)
        self.group = self._process.pid

    def end(self) -> None:
        """End what is left of the group."""
        self._process.communicate()


@functools.cache
def group(by: str = "KILL") -> int:
    """The process group for programs that a test ends by itself; what is left of it ends when this process does."""
    guard = Guard(by)
    atexit.register(guard.end)
    return guard.group


def ended(process: subprocess.Popen[bytes]) -> None:
    """Wait until a program has ended that was asked to, and kill it if it does not."""
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise
