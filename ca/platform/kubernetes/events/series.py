"""EventSeries: decides which occurrences are new Events, and when the count of an old Event is written again.

The same reason about the same object is one Event, until it has not occurred for ten minutes. The longer it goes on,
the more seldom its count is written, so that something that happens a thousand times a minute costs a handful of
writes. A state machine, without I/O.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from ca.platform.kubernetes.api.objects import Object
from ca.platform.kubernetes.api.resources import Resource

QUIET: Final = timedelta(minutes=10)
_FIRST_GAP, _LONGEST_GAP = timedelta(seconds=5), timedelta(minutes=5)


class EventType(enum.Enum):
    """Whether an operator should worry."""

    NORMAL = "Normal"
    WARNING = "Warning"


@dataclass(frozen=True, slots=True)
class Regarding:
    """The object that an Event is about.

    Args:
        resource: its kind.
        name: its name.
        namespace: its namespace; empty where there is none.
        uid: the object's UID; without one `kubectl describe` does not find the Event.
    """

    resource: Resource
    name: str
    namespace: str = ""
    uid: str = ""

    def reference(self) -> Object:
        """The reference as Events hold it."""
        found: Object = {"apiVersion": self.resource.api_version, "kind": self.resource.kind, "name": self.name}
        return found | {key: value for key, value in (("namespace", self.namespace), ("uid", self.uid)) if value}


@dataclass(frozen=True, slots=True)
class Occurrence:
    """Something that happened.

    Args:
        regarding: to which object.
        action: what was done, or tried: one word.
        reason: the reason of the Event: one word.
        note: what happened, in full.
        type: whether to worry.
    """

    regarding: Regarding
    action: str
    reason: str
    note: str
    type: EventType = EventType.WARNING

    @property
    def key(self) -> tuple[Regarding, str]:
        """What makes two of them the same Event."""
        return self.regarding, self.reason


@dataclass(slots=True)
class Series:
    """One Event and how often it happened.

    Args:
        occurrence: the first of them.
        first: when the first was.
        count: how many there were.
        last: when the latest was.
        name: of the Event; empty until it is written.
        due: from when on another occurrence is written.
        gap: the time from the last write until then.
    """

    occurrence: Occurrence
    first: datetime
    last: datetime
    count: int = 0
    name: str = ""
    due: datetime | None = None
    gap: timedelta = _FIRST_GAP


class EventSeries:
    """The recent Events. If there are too many, those that occurred longest ago are forgotten.

    Args:
        capacity: how many are remembered.
    """

    def __init__(self, capacity: int = 2000) -> None:
        self._capacity = capacity
        self._series: OrderedDict[tuple[Regarding, str], Series] = OrderedDict()

    def count(self, occurrence: Occurrence, now: datetime) -> Series | None:
        """Count an occurrence.

        Returns:
            the series if its Event is to be written now: created, if it has no name yet; None if not.
        """
        key = occurrence.key
        series = self._series.get(key)
        if series is None or now - series.last >= QUIET:
            series = self._series[key] = Series(occurrence, now, now)
        self._series.move_to_end(key)
        if len(self._series) > self._capacity:
            self._series.popitem(last=False)
        series.count, series.last = series.count + 1, now
        if series.due is not None:
            if now < series.due:
                return None
            series.gap = min(2 * series.gap, _LONGEST_GAP)
        series.due = now + series.gap
        return series
