"""Which pod and which container a process belongs to, by its /proc/<pid>/cgroup (cgroups(7)). No I/O.

The kubelet makes one control group for each pod and the container's runtime one for each container in it:

    /kubepods/burstable/pod<uid>/<container>
    /kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<uid, - as _>.slice/cri-containerd-<container>.scope
    /kubepods-burstable-pod<uid, - as _>.slice:cri-containerd:<container>    (the runtime has no systemd driver, and
                                                                              the kubelet has)

Only the place where the kubelet's groups begin is believed. Whoever has a group delegated may call what is below it
whatever it likes: a user of the machine `kubepods`, a container the pod of somebody else. So what is below a group of a
container says nothing. Who is in something like a pod elsewhere is refused: perhaps we were told a wrong place, and a
process of a pod must never count as one of the machine's own.

In a control group namespace of our own, paths are told from our own group: `/../..` leads out of it, which nobody
can be called, and the first names of the path are not to be seen. Of a container beside us in our own pod only its own
group is told, and not the pod.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from istio_auth.errors import NotAuthenticated

_UID = r"pod(?P<uid>[0-9A-Za-z][0-9A-Za-z_-]{0,127})"
_CLASS = r"(?:burstable|besteffort)"
_REST = r"(?:/(?P<rest>.*))?"
_OF_CGROUPFS = rf"(?:{_CLASS}/)?{_UID}{_REST}"
_SLICE = rf"(?:[^/:]+-)?kubepods(?:-{_CLASS})?-{_UID}\.slice"
_OF_SYSTEMD = rf"(?:[^/:]+-{_CLASS}\.slice/)?{_SLICE}{_REST}"
_COLONS = rf"{_SLICE}:(?P<rest>.*)"
_WHOLE = (
    re.compile(rf"kubepods/{_OF_CGROUPFS}"),
    re.compile(rf"(?:[^/:]+-)?kubepods\.slice/{_OF_SYSTEMD}"),
    re.compile(_COLONS),
)
_CUT = (*_WHOLE, re.compile(_OF_CGROUPFS), re.compile(_OF_SYSTEMD))  # the first names are not to be seen
_CONTAINER = re.compile(r"(?:(?:cri-containerd|crio|docker)[-:])?(?P<id>[0-9a-f]{64})(?:\.scope)?(?:/.*)?")
_ANYWHERE = re.compile(rf"/(?:kubepods/(?:{_CLASS}/)?|[^/]*kubepods[^/]*-)pod[0-9A-Za-z]")
_UP = "/.."


@dataclass(frozen=True, slots=True)
class Place:
    """Where in Kubernetes a process is.

    Args:
        uid: its pod's UID; None if only the container is to be seen.
        container: its container's id; None if it is in the pod's group, and in no container's.
    """

    uid: str | None
    container: str | None

    def __str__(self) -> str:
        return " ".join(
            f"{what} {which}" for what, which in (("pod", self.uid), ("container", self.container)) if which
        )


def place_of(lines: Iterable[str], root: str = "/") -> Place | None:
    """Where a process is; None if it is in no pod.

    Args:
        lines: what its /proc/<pid>/cgroup says.
        root: the group that the kubelet's own are made in, as it is called there.

    Raises:
        NotAuthenticated: its hierarchies name several pods or containers, or something like a pod elsewhere.
    """
    paths = [_path(line) for line in lines]
    found = [each for path in paths if (each := _place(path, root.rstrip("/")))]
    if not found:
        if astray := next(filter(_ANYWHERE.search, paths), None):
            raise NotAuthenticated(
                f"its control group {astray[:200]!r} looks like a pod's and is not where the kubelet makes them: "
                "see kubernetes.cgroup_root"
            )
        return None
    uids = {each.uid for each in found if each.uid}
    containers = {each.container for each in found if each.container}
    if len(uids) > 1 or len(containers) > 1:
        raise NotAuthenticated(f"its control groups disagree: {', '.join(sorted({str(each) for each in found}))}")
    return Place(*(next(iter(each), None) for each in (uids, containers)))


def _path(line: str) -> str:
    """The path of `hierarchy:controllers:path`; it may hold colons itself."""
    parts = line.split(":", 2)
    return parts[2] if len(parts) == 3 else ""


def _place(path: str, root: str) -> Place | None:
    inside = path
    while inside.startswith(f"{_UP}/"):
        inside = inside.removeprefix(_UP)
    if inside == path:
        return _matched(path.removeprefix(f"{root}/"), _WHOLE) if path.startswith(f"{root}/") else None
    for hidden in _suffixes(root):
        if inside.startswith(f"{hidden}/"):
            inside = inside.removeprefix(f"{hidden}/")
            break
    if (container := _CONTAINER.fullmatch(inside)) is not None:
        return Place(None, container["id"])
    return _matched(inside, _CUT)


def _suffixes(root: str) -> list[str]:
    """What may be left of the root, the longest first."""
    names = root.split("/")[1:]
    return ["".join(f"/{name}" for name in names[start:]) for start in range(len(names) + 1)]


def _matched(path: str, patterns: tuple[re.Pattern[str], ...]) -> Place | None:
    for pattern in patterns:
        if (match := pattern.fullmatch(path)) is not None:
            container = _CONTAINER.fullmatch(match["rest"] or "")
            return Place(match["uid"].replace("_", "-"), container["id"] if container else None)
    return None
