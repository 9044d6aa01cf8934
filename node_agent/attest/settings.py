"""The settings of looking up pods: `[kubernetes]` in the agent's configuration."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated

from istio_auth.daemon.settings import Setting
from istio_auth.errors import ConfigurationError
from istio_auth.host_port import HostPort

_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


@dataclass(frozen=True, slots=True)
class KubernetesSettings:
    """How the kubelet of this node is asked for its pods."""

    kubelet: Annotated[
        HostPort | None, Setting("where the kubelet is; naming it makes callers known by their pods")
    ] = None
    kubelet_name: Annotated[
        str, Setting("what the kubelet's certificate names it, if that is not the host it is asked at")
    ] = ""
    kubelet_ca: Annotated[Path, Setting("who issued the kubelet's certificate, or that certificate itself, in PEM")] = (
        _ACCOUNT / "ca.crt"
    )
    token_file: Annotated[Path, Setting("our own token, for the kubelet to know us by")] = _ACCOUNT / "token"
    cgroup_root: Annotated[Path, Setting("the control group in which the kubelet makes those of its pods")] = Path("/")
    containers: Annotated[
        bool, Setting("tell a pod's containers apart; one that starts waits until the kubelet knows it runs")
    ] = False
    wait: Annotated[timedelta, Setting("how long a caller may wait until the kubelet tells of its pod")] = timedelta(
        seconds=10
    )

    def __post_init__(self) -> None:
        if self.kubelet is not None and not (self.kubelet.host and self.kubelet.port):
            raise ConfigurationError(f"kubernetes.kubelet {str(self.kubelet)!r} can not be dialled: give host and port")
        for path in (self.kubelet_ca, self.token_file, self.cgroup_root):
            if not path.is_absolute():
                raise ConfigurationError(f"kubernetes: {path} is no absolute path")
        if ".." in self.cgroup_root.parts:
            raise ConfigurationError(f"kubernetes.cgroup_root {self.cgroup_root} is no plain path")
        if self.wait < timedelta(seconds=1):
            raise ConfigurationError("kubernetes.wait is shorter than a second")
