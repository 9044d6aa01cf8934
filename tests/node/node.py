"""A node of one's own on a control plane: containerd, a bridge for its pods, and a kubelet. Gone afterwards.

It needs a machine of its own (`tests.node.machine`), and its life knows no event loop.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.cluster.control_plane import ControlPlane
from tests.cluster.server import Server
from tests.node import image
from tests.node.build import NodePrograms
from tests.node.machine import ADDRESS, KUBELET

_SUBNET = "10.88.0.0/16"
_NAMESPACE = "k8s.io"  # that of Kubernetes in containerd
_CONTAINERD = """
version = 3
root = "{folder}/containerd"
state = "{folder}/containerd-state"
disabled_plugins = ["io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing"]
[grpc]
address = "{socket}"
[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "{image}"
[plugins."io.containerd.cri.v1.runtime"]
restrict_oom_score_adj = true  # who has no CAP_SYS_RESOURCE can not lower a score
[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["{cni}"]
conf_dir = "{folder}/cni"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
BinaryName = "{runc}"
SystemdCgroup = false
"""


class Node:
    """A node that pods can be bound to, from entering to leaving.

    Args:
        plane: its control plane.
        programs: what runs on it.
        cgroup: the control group for its pods.
        name: its name.

    Attributes:
        name: its name.
        kubelet: the kubelet, which tests may restart.
    """

    def __init__(self, plane: ControlPlane, programs: NodePrograms, cgroup: str, *, name: str = "node-1") -> None:
        self.plane, self.name = plane, name
        self._programs, self._cgroup = programs, cgroup

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            folder = tempfile.TemporaryDirectory(prefix="node-", ignore_cleanup_errors=True)  # its machine ends as well
            self._folder = Path(stack.enter_context(folder))
            self._socket = self._folder / "containerd.sock"
            stack.callback(self._unmount_all)
            self._start_containerd(stack)
            stack.callback(self._kill_pods)
            self.kubelet = self._start_kubelet()
            stack.callback(self.kubelet.end)
            self._end = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end.close()

    def ctr(self, *words: object) -> str:
        """What `ctr` prints, asked for the containers of Kubernetes."""
        program = self._programs.containerd / "ctr"
        command = (str(program), "--address", str(self._socket), "--namespace", _NAMESPACE, *map(str, words))
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def pid_of(self, container_id: str) -> int:
        """The process id of a container's first process, by the id that its pod's status has."""
        wanted = container_id.removeprefix("containerd://")
        for line in self.ctr("tasks", "list").splitlines()[1:]:
            container, pid, *_ = line.split()
            if container == wanted:
                return int(pid)
        raise AssertionError(f"{container_id} does not run")

    def _start_containerd(self, stack: ExitStack) -> None:
        networks = self._folder / "cni"
        networks.mkdir()
        (networks / "10-pods.conflist").write_text(json.dumps(_network(self._folder)))
        config = self._folder / "containerd.toml"
        config.write_text(
            _CONTAINERD.format(
                folder=self._folder,
                socket=self._socket,
                image=image.NAME,
                cni=self._programs.cni,
                runc=self._programs.runc,
            )
        )
        command = (self._programs.containerd / "containerd", "--config", config)
        stack.callback(self.plane.add(command, log="containerd.log", is_ready=self._containerd_answers).end)
        archive = self._folder / "image.tar"
        image.write(archive, self._programs.busybox)
        self.ctr("images", "import", archive)

    def _containerd_answers(self) -> bool:
        try:
            return bool(self.ctr("version"))
        except subprocess.CalledProcessError:
            return False

    def _start_kubelet(self) -> Server:
        config = self._folder / "kubelet.json"
        config.write_text(json.dumps(self._kubelet_settings()))
        command = (
            self._programs.kubelet,
            f"--config={config}",
            f"--kubeconfig={self.plane.kubelet_kubeconfig(self.name)}",
            f"--root-dir={KUBELET}",
            f"--hostname-override={self.name}",
            f"--node-ip={ADDRESS}",
        )
        return self.plane.add(command, log="kubelet.log", is_ready=self._is_ready)

    def _kubelet_settings(self) -> dict[str, object]:
        certificate, key = self.plane.kubelet_certificate(self.name, ADDRESS)
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "containerRuntimeEndpoint": f"unix://{self._socket}",
            "failCgroupV1": False,
            "failSwapOn": False,
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{self._cgroup}",
            "enforceNodeAllocatable": [],
            "evictionHard": {"memory.available": "1Mi", "nodefs.available": "0%", "imagefs.available": "0%"},
            "imageGCHighThresholdPercent": 100,
            "authentication": {"x509": {"clientCAFile": str(self.plane.ca_file)}},
            "tlsCertFile": str(certificate),
            "tlsPrivateKeyFile": str(key),
            "syncFrequency": "1s",  # how soon volumes are published again
            "nodeStatusUpdateFrequency": "1s",
            "registerWithTaints": [],
            "podLogsDir": str(self._folder / "logs"),
            "volumePluginDir": str(self._folder / "volume-plugins"),
            "staticPodPath": "",
            "shutdownGracePeriod": "0s",
            "logging": {"verbosity": 2},
        }

    def _is_ready(self) -> bool:
        """Whether the API server has heard from the kubelet that all is well."""
        found = self.plane.find(f"/api/v1/nodes/{self.name}")
        conditions = found["status"].get("conditions", []) if found else []
        return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)

    def _kill_pods(self) -> None:
        """Some may be about to end, as the kubelet had told them to."""
        for _ in range(20):
            tasks = [line.split()[0] for line in self.ctr("tasks", "list").splitlines()[1:]]
            for task in tasks:
                with suppress(subprocess.CalledProcessError):
                    self.ctr("tasks", "delete", "--force", task)
            if not tasks:
                return
            time.sleep(0.1)

    def _unmount_all(self) -> None:
        """What was mounted last goes first, unless it went by itself."""
        mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
        for mount in reversed(mounts):
            if not Path(mount).is_relative_to(self._folder) and KUBELET not in Path(mount).parents:
                continue
            subprocess.run(("umount", "--lazy", mount), check=False)


def _network(folder: Path) -> dict[str, object]:
    ranges = [[{"subnet": _SUBNET}]]
    bridge = {
        "type": "bridge",
        "bridge": "pods0",
        "isGateway": True,
        "hairpinMode": True,
        "ipam": {
            "type": "host-local",
            "ranges": ranges,
            "routes": [{"dst": "0.0.0.0/0"}],
            "dataDir": os.fspath(folder / "addresses"),
        },
    }
    return {"cniVersion": "1.0.0", "name": "pods", "plugins": [bridge]}
