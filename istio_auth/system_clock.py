"""The machine's own clock. Only programs and TLS contexts take it by themselves; everything else is given a time."""

from __future__ import annotations

from datetime import UTC, datetime


class SystemClock:
    """The `Clock` that the machine keeps."""

    def now(self) -> datetime:
        """The present instant, in UTC."""
        return datetime.now(UTC)
