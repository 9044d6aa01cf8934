"""What /proc says of a caller: its other groups, the file it executes, and that file's hash.

    unix:supplementary_gid:N    unix:path:/usr/bin/web    unix:sha256:<64 hexadecimal digits>

What can not be seen is not observed, and nobody earns anything by it: of another user's process an agent without
CAP_SYS_PTRACE sees no file. A file that was replaced or deleted while it runs has no path any more, and still a hash:
the hash is of what runs, whatever lies at its path by now. Whoever may run any program as this user can make a caller
look like another program of that user: path and hash tell programs apart, and never users.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import threading
from collections import OrderedDict
from pathlib import Path

from istio_auth.door import UnixCaller
from istio_auth.registration import Selector
from node_agent.attest.proc import lines

_MAX_HASHED = 1 << 30  # bytes; a larger executable has no hash
_KEPT_HASHES = 256
_BLOCK = 1 << 20
_DELETED = " (deleted)"  # proc(5)

_File = tuple[int, int, int, int, int]  # which file, and which content, as far as its owner can not fake it


class ProcessAttestor:
    """A `WorkloadAttestor` for what is under /proc. It reads whole files, on a thread.

    Args:
        proc: where processes are shown.
    """

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._hashes: OrderedDict[_File, str] = OrderedDict()
        self._lock = threading.Lock()  # also: one file is hashed at a time, and once

    async def attest(self, peer: UnixCaller) -> frozenset[Selector]:
        """The caller's groups, executable, and that one's hash, as far as they can be seen."""
        return await asyncio.to_thread(self._look, self._proc / str(peer.pid))

    def _look(self, folder: Path) -> frozenset[Selector]:
        seen = {Selector("unix", f"supplementary_gid:{group}") for group in _groups(folder)}
        if (path := _executable(folder)) is not None:
            seen.add(Selector("unix", f"path:{path}"))
        if (digest := self._hash(folder / "exe")) is not None:
            seen.add(Selector("unix", f"sha256:{digest}"))
        return frozenset(seen)

    def _hash(self, link: Path) -> str | None:
        try:
            file = link.open("rb", buffering=0)  # what runs, whatever has its name by now
        except OSError:
            return None
        with file, self._lock:
            found = os.fstat(file.fileno())
            if found.st_size > _MAX_HASHED:
                return None
            key = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
            if key not in self._hashes:
                self._hashes[key] = _sha256(file)
            self._hashes.move_to_end(key)
            while len(self._hashes) > _KEPT_HASHES:
                self._hashes.popitem(last=False)
            return self._hashes[key]


def _groups(folder: Path) -> list[int]:
    try:
        (line,) = (line for line in lines(folder / "status") if line.startswith("Groups:"))
    except OSError:
        return []
    return list(map(int, line.removeprefix("Groups:").split()))


def _executable(folder: Path) -> str | None:
    try:
        path = str((folder / "exe").readlink())
    except OSError:
        return None
    return None if path.endswith(_DELETED) else path


def _sha256(file: io.RawIOBase) -> str:
    digest = hashlib.sha256()
    while block := file.read(_BLOCK):
        digest.update(block)
    return digest.hexdigest()
