"""Somebody else keeps changing an object back: who gives way before it becomes a fight. A state machine, no clock.

Three changes in a minute that had to be undone, and the object is left alone for ten minutes; then it is tried again,
with a clean record.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Generic, TypeVar

Key = TypeVar("Key")


@dataclass(slots=True)
class Contention(Generic[Key]):
    """Remembers who changed what back, and what is therefore left alone.

    Args:
        limit: how many changes within the window are too many.
        window: how long a change is remembered.
        pause: how long an object is left alone.
    """

    limit: int = 3
    window: timedelta = timedelta(minutes=1)
    pause: timedelta = timedelta(minutes=10)
    _changes: dict[Key, tuple[datetime, ...]] = field(default_factory=dict)
    _until: dict[Key, datetime] = field(default_factory=dict)

    def note(self, key: Key, now: datetime) -> datetime | None:
        """Somebody changed an object after we wrote it, so that it has to be written again: call it once for each time.

        Returns:
            until when it is left alone from now on; None when it may be written again.
        """
        if (until := self.until(key, now)) is not None:
            return until
        recent = (*(each for each in self._changes.get(key, ()) if now - each < self.window), now)
        if len(recent) < self.limit:
            self._changes[key] = recent
            return None
        self._changes.pop(key, None)
        self._until[key] = now + self.pause
        return self._until[key]

    def until(self, key: Key, now: datetime) -> datetime | None:
        """Until when an object is left alone; None when it is not."""
        until = self._until.get(key)
        return until if until is not None and now < until else None

    def left_alone(self, now: datetime) -> dict[Key, datetime]:
        """All that is left alone, each with its end; what has ended, or is too old to count, is forgotten."""
        self._until = {key: until for key, until in self._until.items() if now < until}
        self._changes = {key: seen for key, seen in self._changes.items() if now - seen[-1] < self.window}
        return dict(self._until)

    def forget(self, key: Key) -> None:
        """The object is gone for good: nothing is held against another of its name."""
        self._changes.pop(key, None)
        self._until.pop(key, None)
