"""The IssuanceLog port: every certificate is on record before it leaves; and its adapter, a file of JSON lines.

A record is appended after signing and before the reply. It carries the certificate, the grant, who asked and how that
was proven, and a number that grows by one. If it can not be made durable, the certificate is not released. Appending
blocks, so it happens on the signing threads. Several of them share one `fdatasync`: a thread that comes while one runs
writes its lines, waits, and is covered by the next one.

A line that a crash has torn is moved aside at the next start, and reported: its certificate never left.
"""

from __future__ import annotations

import base64
import fcntl
import json
import logging
import os
import stat
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from ca.attest import Attested
from ca.registry import Grant
from istio_auth.errors import ConfigurationError, IstioAuthError, NotReady
from istio_auth.files import private_folder, sync_folder

_log = logging.getLogger(__name__)
_LONGEST_TAIL = 1 << 20  # many times what one batch writes
_PROBE = b" " * (64 << 10)  # about what a full trip of orders writes


@dataclass(frozen=True, slots=True)
class IssuanceRecord:
    """One certificate that was signed.

    Args:
        time: when.
        request_id: of the call that asked for it.
        serial: its serial number.
        certificate: the certificate in DER.
        grant: what the registry allowed.
        attested: who asked, and how that was proven.
        not_after: when it ends.
    """

    time: datetime
    request_id: str
    serial: int
    certificate: bytes
    grant: Grant
    attested: Attested
    not_after: datetime


@dataclass(frozen=True, slots=True)
class Receipt:
    """The number under which a certificate is on record; None if it is not, and need not be."""

    sequence: int | None


class IssuanceLog(Protocol):
    """Keeps the records. Callable from any thread; appending blocks until they are durable."""

    def append_many(self, records: Sequence[IssuanceRecord]) -> list[Receipt]:
        """Put all of the records on record, or none.

        Raises:
            NotReady: it did not work, and none of these certificates may be released.
        """
        ...

    def ready(self) -> str | None:
        """Why nothing could be put on record at the last attempt; None if it worked. Does not block."""
        ...

    def probe(self) -> None:
        """If the last attempt failed, find out whether it works again. Blocks."""
        ...


@dataclass(frozen=True, slots=True)
class _Position:
    """Where the last whole line ends, and its number."""

    end: int
    sequence: int


class FileIssuanceLog:
    """The `IssuanceLog` in a file of JSON lines, mode 0600; one process at a time.

    Args:
        path: the file; it is made if it is not there, and so is its folder.
        required: whether a certificate that can not be recorded is withheld; if not, it leaves with a loud warning.
        sync: whether to wait until a record is on the disk; if not, a crash of the machine may lose the last records.

    Attributes:
        unrecorded: how many certificates left without a record; always 0 if `required`.

    Raises:
        ConfigurationError: the file can not be used, or is something else.
        NotReady: another process writes to it, or it could not be read or repaired.
    """

    def __init__(self, path: Path, *, required: bool = True, sync: bool = True) -> None:
        self.unrecorded = 0
        self._path = path
        self._required = required
        self._sync = sync
        self._syncing, self._writing = threading.Lock(), threading.Lock()  # taken in this order
        self._fault: str | None = None
        self._losses = 0  # how often lines that were written had to be cut off again
        self._descriptor, self._written = _open(path)
        self._durable = self._written

    def append_many(self, records: Sequence[IssuanceRecord]) -> list[Receipt]:
        """Put all of the records on record, or none (see `IssuanceLog`)."""
        try:
            last = self._append([_members(record) for record in records])
        except (OSError, NotReady) as error:
            if self._required:
                raise NotReady(f"nothing can be put on record: {self._fault or error}") from error
            self.unrecorded += len(records)
            _log.critical("%d certificates leave without being on record: %s", len(records), self._fault or error)
            return [Receipt(None)] * len(records)
        return [Receipt(last - len(records) + number) for number in range(1, len(records) + 1)]

    def ready(self) -> str | None:
        """Why nothing could be put on record at the last attempt, if it must be."""
        return self._fault if self._required else None

    def probe(self) -> None:
        """If the last attempt failed, find out whether it works again."""
        if self._fault is None:
            return
        with self._syncing, self._writing:
            try:
                self._cut()
                _write_all(self._descriptor, _PROBE)
                os.fdatasync(self._descriptor)
                self._cut()
            except OSError as error:
                self._fault = self._told(error)
            else:
                self._fault = None

    def reopen(self) -> None:
        """Go on in a new file after the old one was renamed; the numbers continue.

        Raises:
            ConfigurationError, NotReady: the new file can not be used; the old one stays in use.
        """
        with self._syncing, self._writing:
            with suppress(FileNotFoundError):
                if os.path.samestat(self._path.stat(), os.fstat(self._descriptor)):
                    return
            old, last = self._descriptor, self._written.sequence
            os.fdatasync(old)
            descriptor, position = _open(self._path)
            if position.sequence < last:
                _write_all(descriptor, _line({"continues": last}))
                position = _Position(os.fstat(descriptor).st_size, last)
            self._descriptor, self._written, self._durable = descriptor, position, position
            os.close(old)

    def close(self) -> None:
        """Close the file."""
        with self._syncing, self._writing:
            os.close(self._descriptor)

    def _append(self, lines: list[dict[str, object]]) -> int:
        """Write the lines and wait until they are durable; the number of the last."""
        with self._writing:
            if self._fault is not None:
                self._cut()  # what a failed write left behind
            before, losses = self._written, self._losses
            content = b"".join(_line({"sequence": before.sequence + n} | line) for n, line in enumerate(lines, 1))
            try:
                _write_all(self._descriptor, content)
            except OSError as error:
                self._fault = self._told(error)
                with suppress(OSError):
                    self._cut()
                raise
            self._written = mine = _Position(before.end + len(content), before.sequence + len(lines))
        self._commit(mine.end, losses)
        self._fault = None
        return mine.sequence

    def _commit(self, end: int, losses: int) -> None:
        """Return when everything up to `end` is durable. The sync of one thread often covers those that wait for it."""
        with self._syncing:
            if losses != self._losses:
                raise NotReady("the records were lost together with those before them")
            if self._durable.end >= end or not self._sync:
                return
            reached = self._written
            try:
                os.fdatasync(self._descriptor)
            except OSError as error:
                with self._writing:
                    self._fault = self._told(error)
                    self._losses += 1
                    self._written = self._durable
                    with suppress(OSError):
                        self._cut()
                raise
            self._durable = reached

    def _cut(self) -> None:
        os.ftruncate(self._descriptor, self._written.end)

    def _told(self, error: OSError) -> str:
        return f"{self._path} can not be written: {error.strerror}"


def _members(record: IssuanceRecord) -> dict[str, object]:
    grant, attested = record.grant, record.attested
    return {
        "time": record.time.isoformat(),
        "request_id": record.request_id,
        "serial": f"{record.serial:x}",
        "spiffe_id": str(grant.spiffe_id),
        "dns_names": grant.dns_names,
        "not_after": record.not_after.isoformat(),
        "granted_ttl": None if grant.ttl is None else grant.ttl.total_seconds(),
        "attested": {
            "spiffe_id": str(attested.spiffe_id),
            "method": attested.method,
            "selectors": sorted(map(str, attested.selectors)),
            "details": dict(attested.details),
        },
        "certificate": base64.b64encode(record.certificate).decode(),
    }


def _line(members: dict[str, object]) -> bytes:
    return json.dumps(members, separators=(",", ":")).encode() + b"\n"


def _write_all(descriptor: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _open(path: Path) -> tuple[int, _Position]:
    """Open and lock the file, and move a torn last line aside; the descriptor, and where the last line ends."""
    try:
        if not path.parent.exists():
            private_folder(path.parent)
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigurationError(f"can not open the issuance log {path}: {error.strerror}") from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ConfigurationError(f"the issuance log {path} is no regular file")
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        position = _repaired(path, descriptor)
        sync_folder(path.parent)
    except BlockingIOError as error:
        os.close(descriptor)
        raise NotReady(f"another process writes to the issuance log {path}") from error
    except OSError as error:
        os.close(descriptor)
        raise NotReady(f"can not read or repair the issuance log {path}: {error.strerror}") from error
    except IstioAuthError:
        os.close(descriptor)
        raise
    return descriptor, position


def _repaired(path: Path, descriptor: int) -> _Position:
    """Where the last whole line ends; anything after it is moved to a file beside this one."""
    size = os.fstat(descriptor).st_size
    start = max(0, size - _LONGEST_TAIL)
    tail = os.pread(descriptor, _LONGEST_TAIL, start)
    end, sequence = len(tail), None
    while end and (sequence := _sequence(tail[(begin := tail.rfind(b"\n", 0, end - 1) + 1) : end])) is None:
        end = begin
    if sequence is None and (start or tail.count(b"\n") > 0):
        raise ConfigurationError(f"{path} is no issuance log: its last lines are something else")
    if torn := tail[end:]:
        _move_aside(path.with_name(f"{path.name}.torn"), torn)
        os.ftruncate(descriptor, start + end)
        os.fsync(descriptor)
        _log.warning("the last line of %s was torn (%d bytes): it was moved to %s.torn", path, len(torn), path.name)
    return _Position(start + end, sequence or 0)


def _sequence(line: bytes) -> int | None:
    """The number in a line; None if it is no whole line of ours."""
    if not line.endswith(b"\n"):
        return None
    with suppress(ValueError, RecursionError):
        match json.loads(line):
            case {"sequence": int(number)} | {"continues": int(number)}:
                return number
    return None


def _move_aside(path: Path, torn: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        _write_all(descriptor, torn + b"\n")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
