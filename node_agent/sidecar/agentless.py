"""A sidecar without an agent: which mounted files take its place, and the folder of what its Envoy starts with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath

from istio_auth.bundle import JSON
from istio_auth.envoy.mounted_secrets import MountedSecrets
from istio_auth.errors import ConfigurationError
from istio_auth.files import atomic_write, file_error
from node_agent.layout import Layout


@dataclass(frozen=True, slots=True)
class Agentless:
    """The mounted files: `[agentless]` in a sidecar's file.

    Args:
        folder: where they are in the pod.
        layout: what they are called.
        roots: where the roots are, if they are not in that folder.
    """

    folder: str = ""
    layout: Layout = Layout.ISTIO
    roots: str = ""

    def secrets(self, told_in: PurePath | None) -> MountedSecrets:
        """What Envoy is told of them.

        Args:
            told_in: the folder, in the pod, of the files that the sidecar is told by; None where they are printed.

        Raises:
            ConfigurationError: it can not be told so.
        """
        if told_in is None:
            raise ConfigurationError(
                "without an agent Envoy needs two files beside its bootstrap: name a folder for all three with --output"
            )
        if not self.folder:
            raise ConfigurationError("layout and roots are for mounted files: name their folder")
        folder, names = PurePath(self.folder), self.layout.names
        roots = PurePath(self.roots) if self.roots else folder / names.roots
        return MountedSecrets(folder / names.chain, folder / names.key, roots, told_in)


def write_sidecar(folder: Path, contents: Mapping[str, JSON]) -> None:
    """Write what a sidecar's Envoy starts with, each part into a file of its name. None holds a secret.

    Raises:
        ConfigurationError: the folder can not be made or written to.
        NotReady: the disk is full or failed.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise file_error(error, folder, "make the folder", absent=ConfigurationError) from error
    for name, content in contents.items():
        atomic_write(folder / name, f"{json.dumps(content, indent=2)}\n".encode(), mode=0o644)
