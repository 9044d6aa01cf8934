"""What an operator sees of a folder of files, as plain data with stable names. No keys, no certificates."""

from __future__ import annotations

from istio_auth.daemon.output import iso_if_any
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
        "not_after": iso_if_any(state.svid.not_after if state.svid else None),
        "written": iso_if_any(state.at),
        "hook": writer.settings.way or None,
        "told": state.told.result if state.told else "",
        "told_at": iso_if_any(state.told.at if state.told else None),
        "trouble": state.trouble,
        "failed_attempts": state.attempts,
        "next_attempt": iso_if_any(state.again),
        "bundle": {None: "none", True: "current", False: "lagging"}[writer.is_current()],
        "bundle_sequence": state.bundle.sequence if state.bundle else None,
    }
