"""Lines of JSON that another program writes to a file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from istio_auth.bundle import JSON


class Log:
    """Such a file, from its present end on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._start = path.stat().st_size

    def lines(self) -> Iterator[dict[str, JSON]]:
        """The whole lines written since; what is no object in JSON is left out."""
        with self._path.open("rb") as file:
            file.seek(self._start)
            for line in file:
                if line.startswith(b"{") and line.endswith(b"}\n"):
                    yield json.loads(line)
