"""Gives way when somebody else keeps changing an object back, so that it does not become a fight. A state machine.

After three changes in a minute that had to be undone, the object is left alone for ten minutes. Then it is tried again,
and the count begins anew.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Generic, TypeVar

Key = TypeVar("Key")


@dataclass(slots=True)
class Contention(Generic[Key]):
    """Remembers which objects were changed back, and which are therefore left alone.

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
        """Note that somebody changed an object which we had written, so that we have to write it again.

        Call it once for each such change.

        Returns:
            until when the object is left alone; None if it may be written again.
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
        """The objects that are left alone, and until when. Forgets what has ended, or is too old to count."""
        self._until = {key: until for key, until in self._until.items() if now < until}
        self._changes = {key: seen for key, seen in self._changes.items() if now - seen[-1] < self.window}
        return dict(self._until)

    def forget(self, key: Key) -> None:
        """The object is gone for good: a new one of the same name begins with a clean record."""
        self._changes.pop(key, None)
        self._until.pop(key, None)
