"""Whether somebody listens at a Unix socket: its file is there a moment before."""

from __future__ import annotations

import socket
from pathlib import Path


def is_answered(path: Path) -> bool:
    """Whether a connection is taken at this path."""
    with socket.socket(socket.AF_UNIX) as visitor:
        visitor.settimeout(60)
        try:
            visitor.connect(str(path))
        except OSError:
            return False
    return True
