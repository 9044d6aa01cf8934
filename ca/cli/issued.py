"""Reads the issuance log for people: strict enough to notice a file that is no log, and without the log's lock."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from istio_auth.bundle import JSON
from istio_auth.daemon.output import iso, shown
from istio_auth.errors import ConfigurationError, MissingError, NotReady
from istio_auth.spiffe_id import SpiffeID

_LONGEST_LINE = 1 << 20


@dataclass(frozen=True, slots=True)
class Issued:
    """One certificate on record; `proof` has the details of how the caller was attested, as in the CA's own log."""

    sequence: int
    time: datetime
    request_id: str
    serial: str
    spiffe_id: str
    dns_names: tuple[str, ...]
    not_after: datetime
    caller: str
    method: str
    proof: Mapping[str, str]
    certificate: str

    def json(self) -> dict[str, JSON]:
        """The record for scripts."""
        return {
            "sequence": self.sequence,
            "time": iso(self.time),
            "request_id": self.request_id,
            "serial": self.serial,
            "spiffe_id": self.spiffe_id,
            "dns_names": list[JSON](self.dns_names),
            "not_after": iso(self.not_after),
            "caller": self.caller,
            "method": self.method,
            "proof": dict[str, JSON](self.proof),
            "certificate": self.certificate,
        }

    def row(self) -> tuple[str, ...]:
        """The record for people."""
        return (
            str(self.sequence),
            shown(self.time),
            self.spiffe_id,
            shown(self.not_after),
            self.caller,
            self.method,
            self.serial,
        )


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which records are wanted; an empty field excludes none."""

    spiffe_id: str = ""
    serial: str = ""
    caller: str = ""
    since: datetime | None = None
    not_ended_at: datetime | None = None

    @classmethod
    def of(
        cls, *, spiffe_id: str, serial: str, caller: str, since: datetime | None, not_ended_at: datetime | None
    ) -> Wanted:
        """What the options of the command say.

        Raises:
            InvalidSpiffeID: an identity is no SPIFFE ID.
            ConfigurationError: the serial number is no number in hex.
        """
        names = [str(SpiffeID.normalized(name)) if name else "" for name in (spiffe_id, caller)]
        begin = since.replace(tzinfo=UTC) if since and not since.tzinfo else since
        return cls(names[0], _number(serial) if serial else "", names[1], begin, not_ended_at)

    def fits(self, issued: Issued) -> bool:
        """Whether a record is wanted."""
        return (
            self.spiffe_id in {"", issued.spiffe_id}
            and self.serial in {"", issued.serial}
            and self.caller in {"", issued.caller}
            and (self.since is None or issued.time >= self.since)
            and (self.not_ended_at is None or issued.not_after >= self.not_ended_at)
        )


def read_issued(path: Path, wanted: Wanted, *, last: int) -> list[Issued]:
    """The newest records that are wanted, the newest last.

    Raises:
        MissingError: there is no log.
        ConfigurationError: the file is no issuance log, or may not be read.
        NotReady: reading failed.
    """
    return list(deque((issued for issued in _records(path) if wanted.fits(issued)), maxlen=last))


def _number(serial: str) -> str:
    """A serial number as the log writes it, from any usual form: `0A:1B` is `a1b`."""
    try:
        return f"{int(serial.replace(':', ''), 16):x}"
    except ValueError:
        raise ConfigurationError(f"{serial[:100]!r} is no serial number in hex") from None


def _records(path: Path) -> Iterator[Issued]:
    try:
        with path.open("rb") as lines:
            number = 0
            while line := lines.readline(_LONGEST_LINE):
                number += 1
                if not line.endswith(b"\n"):
                    return  # being written, or torn: not on record
                issued = _read(line, f"{path}:{number}")
                if issued is not None:
                    yield issued
    except FileNotFoundError as error:
        raise MissingError(f"there is no issuance log {path}: nothing was issued yet") from error
    except PermissionError as error:
        raise ConfigurationError(f"{path} may not be read: run this as the CA's own user") from error
    except OSError as error:
        raise NotReady(f"can not read {path}: {error.strerror}") from error


def _read(line: bytes, where: str) -> Issued | None:
    """The record in a line; None for the line at the start of a new file that only continues the numbers."""
    try:
        members = json.loads(line)
        if "continues" in members:
            return None
        return Issued(
            sequence=int(members["sequence"]),
            time=datetime.fromisoformat(members["time"]),
            request_id=str(members["request_id"]),
            serial=str(members["serial"]),
            spiffe_id=str(members["spiffe_id"]),
            dns_names=tuple(map(str, members["dns_names"])),
            not_after=datetime.fromisoformat(members["not_after"]),
            caller=str(members["attested"]["spiffe_id"]),
            method=str(members["attested"]["method"]),
            proof={str(name): str(value) for name, value in dict(members["attested"]["details"]).items()},
            certificate=str(members["certificate"]),
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigurationError(f"{where} is no record of an issuance log") from error
