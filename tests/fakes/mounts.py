"""Volumes shown to pods without root: a link takes the place of a mount, and can fail on request."""

from __future__ import annotations

import threading
from pathlib import Path

from istio_auth.errors import IstioAuthError


class LinkMounts:
    """`Mounts` by symbolic links.

    Attributes:
        failure: raised by every mount, after it was made.
        mounted: how often something was mounted that was not.
    """

    def __init__(self) -> None:
        self.failure: IstioAuthError | None = None
        self.mounted = 0
        self._lock = threading.Lock()

    def mount(self, source: Path, target: Path) -> None:
        if self.is_mounted(source, target):
            return
        self.unmount(target)
        target.symlink_to(source)
        with self._lock:
            self.mounted += 1
        if self.failure is not None:
            raise self.failure

    def is_mounted(self, source: Path, target: Path) -> bool:
        return target.is_symlink() and target.readlink() == source

    def unmount(self, target: Path) -> None:
        if target.is_symlink():
            target.unlink()
        elif target.is_dir():
            target.rmdir()
