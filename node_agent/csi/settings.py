"""The settings of the CSI node plugin: `[csi]` in the agent's configuration."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated

from istio_auth.daemon.settings import Setting
from istio_auth.errors import ConfigurationError

_DRIVER = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,61}[a-z0-9])?")  # CSI: GetPluginInfoResponse.name


@dataclass(frozen=True, slots=True)
class CSISettings:
    """How the kubelet reaches us, and where volumes are."""

    endpoint: Annotated[
        Path | None, Setting("the socket for the kubelet; naming it makes the agent a CSI node plugin")
    ] = None
    driver: Annotated[str, Setting("the name of the CSI driver")] = "istio-auth"
    audience: Annotated[str, Setting("the audience of the pods' tokens, as in the CSIDriver's tokenRequests")] = (
        "istio-ca"
    )
    kubelet_folder: Annotated[Path, Setting("the kubelet's folder; volumes are mounted below it only")] = Path(
        "/var/lib/kubelet"
    )
    registration_folder: Annotated[
        Path | None, Setting("where the kubelet looks for plugins [plugins_registry in kubelet_folder]")
    ] = None
    volumes_folder: Annotated[
        Path | None, Setting("where volumes are kept, in memory, at a short path [csi in run_folder]")
    ] = None
    publish_timeout: Annotated[timedelta, Setting("how long a pod's start may wait for its first certificate")] = (
        timedelta(seconds=30)
    )

    def __post_init__(self) -> None:
        if not _DRIVER.fullmatch(self.driver):
            raise ConfigurationError(f"csi.driver {self.driver[:100]!r} is no name of a CSI driver")
        if not self.audience:
            raise ConfigurationError("csi.audience is empty: that would be the API server's own tokens")
        for path in (self.endpoint, self.kubelet_folder, self.registration_folder, self.volumes_folder):
            if path is not None and not path.is_absolute():
                raise ConfigurationError(f"csi: {path} is no absolute path")
        if self.publish_timeout < timedelta(seconds=1):
            raise ConfigurationError("csi.publish_timeout is shorter than a second")

    @property
    def registration_socket(self) -> Path:
        """Where the kubelet learns of us."""
        return (self.registration_folder or self.kubelet_folder / "plugins_registry") / f"{self.driver}-reg.sock"
