"""The servers of a Kubernetes control plane, built once from their Go modules into a cache of the user's.

`python -m tests.cluster.build` does it by hand and prints the folder. Where `KUBEBUILDER_ASSETS` names a folder with
`etcd` and `kube-apiserver`, as suites of controllers have it, nothing is built.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tests.fakes.go_module import BuildFailed, GoModule, tell

MODULE = Path(__file__).parent / "servers"
PARTS = {
    "etcd": "go.etcd.io/etcd/server/v3",
    "kube-apiserver": "k8s.io/kubernetes/cmd/kube-apiserver",
    "kube-controller-manager": "k8s.io/kubernetes/cmd/kube-controller-manager",
    "kubectl": "k8s.io/kubernetes/cmd/kubectl",
}
CONTROL_PLANE = GoModule("servers", MODULE, "a control plane of Kubernetes, and etcd", PARTS)
_NEEDED = ("etcd", "kube-apiserver")  # of a folder that somebody else filled


def servers() -> Path:
    """The folder with the servers, built first if they are not there: minutes, with progress on stderr.

    Raises:
        BuildFailed: there is no usable Go, it failed, or `KUBEBUILDER_ASSETS` names a folder without them.
    """
    return _given() or CONTROL_PLANE.programs()


def built() -> Path | None:
    """The folder with the servers, or None if they would have to be built.

    Raises:
        BuildFailed: `KUBEBUILDER_ASSETS` names a folder without them.
    """
    return _given() or CONTROL_PLANE.built()


def _given() -> Path | None:
    if not (given := os.environ.get("KUBEBUILDER_ASSETS")):
        return None
    if missing := [name for name in _NEEDED if not (Path(given) / name).is_file()]:
        raise BuildFailed(f"KUBEBUILDER_ASSETS names {given}, where there is no {' and no '.join(missing)}")
    return Path(given)


def main() -> int:
    """Build what is missing and print the folder."""
    try:
        print(servers())
    except BuildFailed as error:
        tell(f"error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
