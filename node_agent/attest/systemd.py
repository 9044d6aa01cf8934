"""The systemd unit and the control group that a caller runs in: `systemd:unit:web.service`, `cgroup:path:/...`.

Only the machine's own systemd is believed: the unit is the first part of the path below the slices. What is further
down belongs to whom it was delegated, and a user's own systemd may call a unit whatever it likes.
"""

from __future__ import annotations

from pathlib import Path

from istio_auth.door import UnixCaller
from istio_auth.registration import Selector

_UNIFIED, _SYSTEMD = "0::", ":name=systemd:"  # cgroups(7): version 2, and systemd's own hierarchy beside version 1
_SLICE, _KINDS = ".slice", (".service", ".scope", ".socket", ".mount", ".swap")


class SystemdAttestor:
    """A `WorkloadAttestor` for unit and control group.

    Args:
        proc: where processes are shown.
    """

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc

    def attest(self, peer: UnixCaller) -> frozenset[Selector]:
        """The caller's control group and unit, as far as they can be seen."""
        try:
            text = (self._proc / str(peer.pid) / "cgroup").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return frozenset()
        seen = set()
        if path := cgroup_path(text):
            seen.add(Selector("cgroup", f"path:{path}"))
            if unit := unit_of(path):
                seen.add(Selector("systemd", f"unit:{unit}"))
        return frozenset(seen)


def cgroup_path(text: str) -> str | None:
    """The control group that `/proc/<pid>/cgroup` tells; None if it is the root, or lies outside what we can see."""
    for line in sorted(text.splitlines(), key=lambda line: not line.startswith(_UNIFIED)):
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
