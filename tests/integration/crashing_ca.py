"""A CA that dies at a given write: `python -m tests.integration.crashing_ca FOLDER killed|unplugged`.

Between the CA and the operating system stands a `Disk` that counts every step that changes something: files and
folders made, each half of each write, syncs, renames, truncations. The same short life (first start, certificates,
renewal of the root) is lived again and again, each time in a new folder and one step longer, and ends by SIGKILL;
`unplugged` also takes away what was written and not synced. After each death follows a second, whole life in that
folder. In `FOLDER/<step>` is left what the two lives said (`first`, `second`) and the state between them (`stored`);
the last folder holds the `trace` of the life that nothing ended.

One process that forks, without threads of its own: to start Python for each of some hundred lives takes a minute.
"""

from __future__ import annotations

import asyncio
import io
import itertools
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from ca.attest import Attested
from ca.authority.authority import Authority, open_authority
from ca.authority.store import FileAuthorityStore
from ca.certificate.build import key_identifier
from ca.issuance_log import FileIssuanceLog
from ca.issuer import IssuedSVID, Issuer, Order, ReservedNames
from ca.profile import IssuanceProfile
from ca.registry import Grant
from istio_auth.keys import public_key_der, public_key_of
from istio_auth.spiffe_id import SpiffeID, TrustDomain
from tests.fakes.clock import FakeClock

LOCAL = TrustDomain("cluster.local")
WEB = SpiffeID.for_service_account(LOCAL, "default", "web")
_open, _write, _fsync, _fdatasync = os.open, os.write, os.fsync, os.fdatasync
_replace, _ftruncate, _truncate, _mkdir, _fchmod = os.replace, os.ftruncate, os.truncate, os.mkdir, os.fchmod
_fdopen = os.fdopen


class Disk:
    """Counts the steps that change the disk, and dies before the chosen one.

    Args:
        stop: the number of that step, from 1; 0 lets the process live.
        lose_unsynced: whether what was not synced is gone afterwards.
    """

    def __init__(self, stop: int, *, lose_unsynced: bool) -> None:
        self.trace: list[str] = []
        self._stop = stop
        self._lose = lose_unsynced
        self._safe: dict[str, int] = {}  # how much of a file would survive

    def install(self) -> None:
        """Stand between this process and the operating system from now on."""
        os.open, os.write, os.replace, os.fdopen = self.open, self.write, self.replace, self.fdopen  # type: ignore[assignment]  # less general than those of os, and enough
        os.fsync, os.fdatasync, os.ftruncate = self.fsync, self.fdatasync, self.ftruncate  # type: ignore[assignment]  # as above
        os.mkdir, os.fchmod = self.mkdir, self.fchmod  # type: ignore[assignment]  # as above

    def open(self, path: str | Path, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_CREAT and not Path(path).exists():
            self.step("create", str(path))
            self._safe[str(path)] = 0
        return _open(path, flags, mode)

    def write(self, descriptor: int, content: bytes) -> int:
        path = _path(descriptor)
        self.step("write", path)
        self._safe.setdefault(path, os.fstat(descriptor).st_size)
        half = len(content) // 2
        written = _write(descriptor, content[:half])
        self.step("write the rest", path)
        return written + _write(descriptor, content[half:])

    def fdopen(self, descriptor: int, mode: str, **named: bool) -> io.BufferedIOBase:
        if "w" not in mode:
            return _fdopen(descriptor, mode, **named)  # type: ignore[call-overload, no-any-return]  # binary
        return io.BufferedWriter(_File(self, descriptor))  # type: ignore[type-var]  # a RawIOBase, as it asks for

    def fsync(self, descriptor: int) -> None:
        self.step("sync", _path(descriptor))
        _fsync(descriptor)
        self._safe.pop(_path(descriptor), None)

    def fdatasync(self, descriptor: int) -> None:
        self.step("sync data", _path(descriptor))
        _fdatasync(descriptor)
        self._safe.pop(_path(descriptor), None)

    def replace(self, old: str | Path, new: str | Path) -> None:
        self.step("rename to", str(new))
        _replace(old, new)
        if (safe := self._safe.pop(str(old), None)) is not None:
            self._safe[str(new)] = safe

    def ftruncate(self, descriptor: int, size: int) -> None:
        self.step("truncate", _path(descriptor))
        _ftruncate(descriptor, size)

    def mkdir(self, path: str | Path, mode: int = 0o777) -> None:
        self.step("make folder", str(path))
        _mkdir(path, mode)

    def fchmod(self, descriptor: int, mode: int) -> None:
        self.step("set mode", _path(descriptor))
        _fchmod(descriptor, mode)

    def step(self, what: str, path: str) -> None:
        """Count this, and die before it if it is the one."""
        name = Path(path).name
        self.trace.append(f"{what} {'temporary' if name.endswith('.tmp') else name}")
        if len(self.trace) == self._stop:
            if self._lose:
                for unsafe, size in self._safe.items():
                    _truncate(unsafe, size)
            os.kill(os.getpid(), signal.SIGKILL)


class _File(io.RawIOBase):
    """A file opened for writing, whose writes are steps."""

    def __init__(self, disk: Disk, descriptor: int) -> None:
        self._disk, self._descriptor = disk, descriptor

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def write(self, content: bytes) -> int:  # type: ignore[override]  # a buffer of bytes, in truth
        return self._disk.write(self._descriptor, bytes(content))

    def close(self) -> None:
        if not self.closed:
            os.close(self._descriptor)
        super().close()


def live(folder: Path, said: Path) -> None:
    """One life of a CA, with every word of it on record at once."""
    descriptor = _open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def say(what: str, value: str) -> None:
        _write(descriptor, f"{what} {value}\n".encode())

    store, clock = FileAuthorityStore(folder / "ca"), FakeClock(datetime(2030, 1, 1, tzinfo=UTC))
    with store.hold():
        authority = open_authority(store, LOCAL, clock)
        clock.time = max(clock.time, authority.active.validity.not_before)  # the first life may have renewed it
        say("root", identifier_of(authority))
        log = FileIssuanceLog(folder / "issuance.log")
        asyncio.run(_work(authority, log, clock, say))
        log.close()
    say("done", "")


def identifier_of(authority: Authority) -> str:
    """What identifies the key of the root."""
    return key_identifier(public_key_der(public_key_of(authority.active.certificate))).hex()


async def _work(authority: Authority, log: FileIssuanceLog, clock: FakeClock, say: Callable[[str, str], None]) -> None:
    issuer = Issuer(authority, IssuanceProfile(), log, clock, ReservedNames.of(LOCAL), threads=1)
    attested = Attested(SpiffeID.for_agent(LOCAL, "node"), "certificate")
    order = Order(Grant(WEB), ec.generate_private_key(ec.SECP256R1()).public_key(), None, attested, "")
    say("issued", f"{(await issuer.issue(order)).serial:x}")
    for result in await issuer.issue_many([order] * 3):
        assert isinstance(result, IssuedSVID), result
        say("issued", f"{result.serial:x}")
    clock.time = authority.not_after - timedelta(days=365)
    say("renewed", str(authority.renew_if_due(clock.now())))
    say("issued", f"{(await issuer.issue(order)).serial:x}")
    await issuer.close()


def main(base: Path, *, lose_unsynced: bool) -> None:
    """Live and die, one step later each time, until nothing is left to die at."""
    for number in itertools.count(1):
        folder = base / str(number)
        folder.mkdir()
        disk = Disk(number, lose_unsynced=lose_unsynced)
        survived = fork(lambda folder=folder, disk=disk: _first_life(folder, disk))  # type: ignore[misc]  # bound now
        if survived:
            break
        if (stored := folder / "ca/authority.json").exists():
            shutil.copy(stored, folder / "stored")
        if not fork(lambda folder=folder: live(folder, folder / "second")):  # type: ignore[misc]  # bound now
            sys.exit(f"step {number}: the second life did not end well")


def _first_life(folder: Path, disk: Disk) -> None:
    disk.install()
    live(folder, folder / "first")
    (folder / "trace").write_text("\n".join(disk.trace))


def fork(life: Callable[[], None]) -> bool:
    """Live in a process of its own; whether it came to its end and was not killed."""
    child = os.fork()
    if not child:
        try:
            life()
            os._exit(0)
        except BaseException:  # noqa: BLE001  # a child ends here and never returns to its parent's code
            traceback.print_exc()
            os._exit(1)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return False
    if os.waitstatus_to_exitcode(status) != 0:
        sys.exit("a life ended by an error")
    return True


def _path(descriptor: int) -> str:
    return str(Path(f"/proc/self/fd/{descriptor}").readlink())


if __name__ == "__main__":
    main(Path(sys.argv[1]), lose_unsynced=sys.argv[2] == "unplugged")
