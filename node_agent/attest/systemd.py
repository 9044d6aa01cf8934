"""The systemd unit and the control group that a caller runs in: `systemd:unit:web.service`, `cgroup:path:/...`.

Only the machine's own systemd is believed: the unit is the first part of the path below the slices. What is further
down belongs to whom it was delegated, and a user's own systemd may call a unit whatever it likes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path

from istio_auth.door import UnixCaller
from istio_auth.registration import Selector
from node_agent.attest.proc import lines

_UNIFIED, _SYSTEMD = "0::", ":name=systemd:"  # cgroups(7): version 2, and systemd's own hierarchy beside version 1
_SLICE, _KINDS = ".slice", (".service", ".scope", ".socket", ".mount", ".swap")


class SystemdAttestor:
    """A `WorkloadAttestor` for unit and control group.

    Args:
        proc: where processes are shown.
    """

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc

    async def attest(self, peer: UnixCaller) -> frozenset[Selector]:
        """The caller's control group and unit, as far as they can be seen."""
        return await asyncio.to_thread(self._look, peer.pid)

    def _look(self, pid: int) -> frozenset[Selector]:
        try:
            told = lines(self._proc / str(pid) / "cgroup")
        except OSError:
            return frozenset()
        seen = set()
        if path := cgroup_path(told):
            seen.add(Selector("cgroup", f"path:{path}"))
            if unit := unit_of(path):
                seen.add(Selector("systemd", f"unit:{unit}"))
        return frozenset(seen)


def cgroup_path(told: Iterable[str]) -> str | None:
    """The control group that `/proc/<pid>/cgroup` tells; None if it is the root, or lies outside what we can see."""
    for line in sorted(told, key=lambda line: not line.startswith(_UNIFIED)):
        if line.startswith(_UNIFIED) or _SYSTEMD in line:
            path = line.split(":", 2)[2]
            if path != "/" and "/.." not in path:
                return path
    return None


def unit_of(path: str) -> str | None:
    """The unit that a control group belongs to; None if it is none of systemd's."""
    for part in path.removeprefix("/").split("/"):
        if part.endswith(_KINDS):
            return part
        if not part.endswith(_SLICE):
            return None
    return None
