"""A file in the state folder with what the agents said last: `ca-cli agent list` shows who has taken the bundle.

The CA writes it after a change and never reads it: after a restart the agents say it again. A file of another version,
or a damaged one, counts as missing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import cast

from ca.service.sync_book import Acknowledgement, Entries
from istio_auth.daemon.output import iso
from istio_auth.errors import IstioAuthError
from istio_auth.files import atomic_write, read_bounded
from istio_auth.strict_json import JSON, parse_json

FILE = "agents-heard.json"
_VERSION = 1
_LARGEST = 64 << 20


class SyncRecord:
    """Writes the file.

    Args:
        folder: the state folder.
        entries: what each agent said last, by agent.
    """

    def __init__(self, folder: Path, entries: Entries) -> None:
        self._path, self._entries = folder / FILE, entries
        self._written: dict[str, Acknowledgement] | None = None

    def write(self) -> None:
        """Write the file if anything has changed. Blocks.

        Raises:
            NotReady, ConfigurationError: it can not be written.
        """
        if (present := self._entries.copy()) == self._written:
            return
        agents = {name: acknowledgement_document(word) for name, word in sorted(present.items())}
        atomic_write(self._path, json.dumps({"version": _VERSION, "agents": agents}, indent=1).encode() + b"\n")
        self._written = present


def read_record(folder: Path) -> dict[str, Acknowledgement]:
    """What the CA of this folder heard last, by agent; empty if there is no usable file."""
    try:
        found = cast("dict[str, JSON]", parse_json(read_bounded(folder / FILE, _LARGEST), limit=_LARGEST))
        if found["version"] != _VERSION:
            return {}
        agents = cast("dict[str, dict[str, JSON]]", found["agents"])
        return {name: _acknowledgement(word) for name, word in agents.items()}
    except (IstioAuthError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def acknowledgement_document(word: Acknowledgement) -> dict[str, JSON]:
    """What an agent said last, as plain data."""
    return {
        "at": iso(word.at),
        "bundle_sequence": word.sequence,
        "consumers": word.consumers,
        "consumers_current": word.consumers_current,
        "laggards": list(word.laggards),
        "version": word.version,
        "streams": word.streams,
    }


def _acknowledgement(word: Mapping[str, JSON]) -> Acknowledgement:
    return Acknowledgement(
        at=datetime.fromisoformat(str(word["at"])),
        sequence=int(cast("int", word["bundle_sequence"])),
        consumers=int(cast("int", word["consumers"])),
        consumers_current=int(cast("int", word["consumers_current"])),
        laggards=tuple(str(name) for name in cast("list[JSON]", word["laggards"])),
        version=str(word["version"]),
        streams=int(cast("int", word["streams"])),
    )
