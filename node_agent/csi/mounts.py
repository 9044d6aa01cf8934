"""Folders that are seen in another place: the `Mounts` port, and bind mounts by the system calls themselves.

mount(2) and umount2(2) are called through libc, and not mount(8): so the image needs no such program, and a failure is
an error number and not a text. Whether a folder is mounted is seen by where it leads: a bound folder is the same folder
(device and inode), so no table of mounts is read. This needs CAP_SYS_ADMIN, and in a container mount propagation to the
host. The plugin needs privilege for nothing else.
"""

from __future__ import annotations

import ctypes
import errno
import os
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from istio_auth.errors import IstioAuthError, NotReady

_READ_ONLY, _NO_SUID, _NO_DEVICES, _NO_PROGRAMS = 1, 2, 4, 8  # mount(2), <sys/mount.h>
_REMOUNT, _BIND = 32, 4096
_DETACH, _NO_FOLLOW = 2, 8  # umount2(2)
_MOST = 16  # mounts one upon the other


class Mounts(Protocol):
    """Lets a folder be seen in another place. All of it blocks, and may be done again."""

    def mount(self, source: Path, target: Path) -> None:
        """Let the folder be seen at the target, for reading only. What else was seen there is not any more.

        Raises:
            IstioAuthError: it can not; nothing is left of it.
        """
        ...

    def is_mounted(self, source: Path, target: Path) -> bool:
        """Whether the folder is seen at the target."""
        ...

    def unmount(self, target: Path) -> None:
        """Let nothing be seen at the target, and no folder be there.

        Raises:
            IstioAuthError: something is left of it.
        """
        ...


class BindMounts:
    """`Mounts` by bind mounts."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)

    def mount(self, source: Path, target: Path) -> None:
        """See `Mounts.mount`."""
        if self.is_mounted(source, target):
            return
        self.unmount(target)
        try:
            target.mkdir(mode=0o750)
            self._mount(source, target, _BIND)
            self._mount(None, target, _BIND | _REMOUNT | _READ_ONLY | _NO_SUID | _NO_DEVICES | _NO_PROGRAMS)
        except OSError as error:
            with suppress(IstioAuthError):
                self.unmount(target)
            with suppress(OSError):
                target.rmdir()  # without privilege that is all that there is to undo
            raise _trouble(error, target, "mount a volume at") from error

    def is_mounted(self, source: Path, target: Path) -> bool:
        """See `Mounts.is_mounted`."""
        return leads_to(target, source)

    def unmount(self, target: Path) -> None:
        """See `Mounts.unmount`."""
        try:
            for _ in range(_MOST):
                if not self._unmounted(target):
                    break
            with suppress(FileNotFoundError):
                target.rmdir()
        except OSError as error:
            raise _trouble(error, target, "unmount") from error

    def _mount(self, source: Path | None, target: Path, flags: int) -> None:
        where = os.fsencode(source) if source is not None else None
        if self._libc.mount(where, os.fsencode(target), None, ctypes.c_ulong(flags), None):
            raise OSError(ctypes.get_errno(), "mount")

    def _unmounted(self, target: Path) -> bool:
        """Whether there was a mount that is gone now."""
        if not self._libc.umount2(os.fsencode(target), _DETACH | _NO_FOLLOW):
            return True
        number = ctypes.get_errno()
        if number not in (errno.EINVAL, errno.ENOENT):  # no mount, or nothing at all, is there
            raise OSError(number, "umount2")
        return False


def _trouble(error: OSError, target: Path, doing: str) -> NotReady:
    hint = ": the agent needs CAP_SYS_ADMIN" if error.errno == errno.EPERM else ""
    message = f"can not {doing} {target}: {os.strerror(error.errno or 0)}{hint}"
    return NotReady(message, public=message)


def leads_to(target: Path, source: Path) -> bool:
    """Whether both are the same folder."""
    try:
        return target.samefile(source)
    except OSError:
        return False
