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
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from weakref import WeakValueDictionary

from istio_auth.door import UnixCaller
from istio_auth.registration import Selector
from node_agent.attest.proc import status_fields

_MAX_HASHED = 1 << 30  # bytes; a larger executable has no hash
_KEPT_HASHES = 256
_BLOCK = 1 << 20
_DELETED = " (deleted)"  # proc(5)

_File = tuple[int, int, int, int, int]  # which file, and which content, as far as its owner can not fake it


class ProcessAttestor:
    """A `WorkloadAttestor` for what is under /proc.

    Whole files are read, on a thread of their own, for one process of a user at a time: whoever runs large programs, or
    changes them again and again, keeps others waiting for one file at most, and nobody whose program is known.

    Args:
        proc: where processes are shown.
    """

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._hashes: OrderedDict[_File, str] = OrderedDict()
        self._lock = threading.Lock()  # of the hashes that are known
        self._hashing = ThreadPoolExecutor(1, thread_name_prefix="executables")
        self._turns: WeakValueDictionary[int, asyncio.Lock] = WeakValueDictionary()  # by user

    async def attest(self, peer: UnixCaller) -> frozenset[Selector]:
        """The caller's groups, executable, and that one's hash, as far as they can be seen."""
        folder = self._proc / str(peer.pid)
        seen = await asyncio.to_thread(_look, folder)
        if (digest := await self._digest(folder / "exe", peer.uid)) is not None:
            seen.add(Selector("unix", f"sha256:{digest}"))
        return frozenset(seen)

    async def _digest(self, link: Path, uid: int) -> str | None:
        is_known, digest = await asyncio.to_thread(self._known, link)
        if is_known:
            return digest
        turn = self._turns.setdefault(uid, asyncio.Lock())
        async with turn:
            return await asyncio.get_running_loop().run_in_executor(self._hashing, self._hash, link)

    def _known(self, link: Path) -> tuple[bool, str | None]:
        """Whether a file need not be read, and the hash of one that was read before."""
        with _opened(link) as found:
            if found is None:
                return True, None
            with self._lock:
                return found[1] in self._hashes, self._hashes.get(found[1])

    def _hash(self, link: Path) -> str | None:
        with _opened(link) as found:
            if found is None:
                return None
            file, key = found
            with self._lock:
                digest = self._hashes.get(key)
            digest = digest or _sha256(file)
            with self._lock:
                self._hashes[key] = digest
                self._hashes.move_to_end(key)
                while len(self._hashes) > _KEPT_HASHES:
                    self._hashes.popitem(last=False)
            return digest


@contextmanager
def _opened(link: Path) -> Iterator[tuple[io.RawIOBase, _File] | None]:
    """What runs, whatever has its name by now, and which file that is; None if it has no hash."""
    try:
        file = link.open("rb", buffering=0)
    except OSError:
        yield None
        return
    with file:
        found = os.fstat(file.fileno())
        key = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        yield None if found.st_size > _MAX_HASHED else (file, key)


def _look(folder: Path) -> set[Selector]:
    seen = {Selector("unix", f"supplementary_gid:{group}") for group in _groups(folder)}
    if (path := _executable(folder)) is not None:
        seen.add(Selector("unix", f"path:{path}"))
    return seen


def _groups(folder: Path) -> list[int]:
    try:
        fields = status_fields(folder)
    except OSError:
        return []
    return list(map(int, fields["Groups"].split()))


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
