"""What an operator sees of a folder of files, as plain data with stable names. No keys, no certificates."""

from __future__ import annotations

from datetime import UTC, datetime

from istio_auth.strict_json import JSON
from node_agent.files.writer import FilesWriter


def files_document(writer: FilesWriter) -> dict[str, JSON]:
    """What stands in the files, what became of telling their reader, and what is tried next."""
    state = writer.state
    return {
        "name": writer.settings.name,
        "folder": str(writer.settings.folder),
        "spiffe_id": str(state.spiffe_id) if state.spiffe_id else None,
        "serial": f"{state.svid.leaf.serial_number:x}" if state.svid else None,
        "not_after": _iso(state.svid.not_after if state.svid else None),
        "written": _iso(state.at),
        "hook": writer.settings.way or None,
        "told": state.told.result if state.told else "",
        "told_at": _iso(state.told.at if state.told else None),
        "trouble": state.trouble,
        "failed_attempts": state.attempts,
        "next_attempt": _iso(state.again),
        "bundle": {None: "none", True: "current", False: "lagging"}[writer.is_current()],
        "bundle_sequence": state.bundle.sequence if state.bundle else None,
    }


def _iso(instant: datetime | None) -> str | None:
    return None if instant is None else instant.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
