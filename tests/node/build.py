"""The servers of a Kubernetes node, built or fetched once into a cache of the user's: kubelet, containerd, runc, CNI.

`python -m tests.node.build` does it by hand. The control plane is built as for `tests/cluster`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.build import servers
from tests.fakes import debian
from tests.fakes.go_module import BuildFailed, GoModule, tell

_MODULES = Path(__file__).parent / "servers"
_CONTAINERD = "github.com/containerd/containerd/v2/cmd"
KUBELET = GoModule("kubelet", _MODULES / "kubelet", "the kubelet", {"kubelet": "k8s.io/kubernetes/cmd/kubelet"})
CONTAINERD = GoModule(
    "containerd",
    _MODULES / "containerd",
    "containerd",
    {name: f"{_CONTAINERD}/{name}" for name in ("containerd", "containerd-shim-runc-v2", "ctr")},
    tags=("no_btrfs", "no_devmapper", "no_zfs"),
)
CSI_SANITY = GoModule(
    "csi-sanity",
    _MODULES / "csi-sanity",
    "csi-sanity",
    {"csi-sanity": "github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity"},
)
_ALL = (KUBELET, CONTAINERD, CSI_SANITY)
_PACKAGES = ("runc", "containernetworking-plugins", "busybox-static")


@dataclass(frozen=True)
class NodePrograms:
    """Where the programs of a node are.

    Args:
        kubelet: the program.
        containerd: the folder with containerd, its shim and `ctr`.
        runc: the program.
        cni: the folder with the CNI plugins.
        busybox: the program, linked to nothing.
        csi_sanity: the program.
    """

    kubelet: Path
    containerd: Path
    runc: Path
    cni: Path
    busybox: Path
    csi_sanity: Path


def node_programs() -> NodePrograms:
    """The programs, built first if they are not there: minutes, with progress on stderr.

    Raises:
        BuildFailed: one can not be had.
    """
    kubelet, containerd, csi_sanity = (module.programs() for module in _ALL)
    runc, cni, busybox = map(_package, _PACKAGES)
    return NodePrograms(
        kubelet / "kubelet",
        containerd,
        runc / "usr/sbin/runc",
        cni / "usr/lib/cni",
        busybox / "bin/busybox",
        csi_sanity / "csi-sanity",
    )


def is_built() -> bool:
    """Whether nothing would have to be built."""
    return all(module.built() for module in _ALL)


def _package(name: str) -> Path:
    if (folder := debian.unpacked(name)) is None:
        raise BuildFailed(f"Debian's package {name} can not be had: it takes apt-get, and a mirror to download from")
    return folder


def main() -> int:
    """Build what is missing, the control plane too, and print where it is."""
    try:
        print(servers(), *vars(node_programs()).values(), sep="\n")
    except BuildFailed as error:
        tell(f"error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
