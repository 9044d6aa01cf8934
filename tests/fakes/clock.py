"""A clock that stands still until a test moves it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta


class FakeClock:
    """A `Clock` under the hand of the test."""

    def __init__(self, now: datetime | None = None) -> None:
        self.time = now or datetime(2030, 1, 1, 12, tzinfo=UTC)

    def now(self) -> datetime:
        return self.time

    def advance(self, by: timedelta) -> None:
        """Move on, or with a negative step back."""
        self.time += by
