"""A record that the reader of files was told of them, kept in the folder that is swapped: new files come without one.

So an agent that restarts knows whether the reader has heard of the files that are there. One that was killed before it
wrote the record finds none, and tells the reader again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from istio_auth.errors import IstioAuthError
from istio_auth.files import atomic_write, file_error, read_bounded

_NAME = "..data/..told"  # in the folder that is swapped
_LIMIT = 4096


@dataclass(frozen=True, slots=True)
class Told:
    """A reader that was told.

    Args:
        result: what came of it, in a few words.
        at: when.
    """

    result: str
    at: datetime


def record(folder: Path, hook: str, told: Told) -> None:
    """Keep it.

    Args:
        folder: of the files.
        hook: how it was told: another way does not count.
        told: what came of it.

    Raises:
        ConfigurationError: the files are gone, or nothing may be written there.
        NotReady: the disk is full or failed.
    """
    document = {"hook": hook, "result": told.result, "at": told.at.isoformat()}
    atomic_write(folder / _NAME, json.dumps(document).encode())


def recorded(folder: Path, hook: str) -> Told | None:
    """What was kept of the files that are there now; None if the reader may not have been told of them, in this way."""
    try:
        found = json.loads(read_bounded(folder / _NAME, _LIMIT))
        told = Told(str(found["result"]), datetime.fromisoformat(found["at"]))
        return told if found["hook"] == hook else None
    except (IstioAuthError, ValueError, KeyError, TypeError):
        return None


def changed_at(path: Path) -> datetime:
    """When a file was changed last.

    Raises:
        MissingError: there is no such file.
        ConfigurationError: it may not be looked at.
    """
    try:
        return datetime.fromtimestamp(path.stat().st_mtime, UTC)
    except OSError as error:
        raise file_error(error, path, "look at") from error
