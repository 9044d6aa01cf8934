"""The machine's own clock. Only programs, sources, TLS contexts and token verifiers use it by themselves."""

from __future__ import annotations

from datetime import UTC, datetime


class SystemClock:
    """The `Clock` of this machine."""

    def now(self) -> datetime:
        """The present instant, in UTC."""
        return datetime.now(UTC)
