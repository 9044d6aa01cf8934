"""Objects of the API server as they come: plain JSON, and how to read a member that may not be there."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import NamedTuple

from istio_auth.bundle import JSON

Object = dict[str, JSON]


class Key(NamedTuple):
    """Which object of a kind: its namespace, empty where there is none, and its name."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else self.name

    @classmethod
    def of(cls, item: Object) -> Key:
        """The key of an object."""
        return cls(text(item, "metadata", "namespace"), text(item, "metadata", "name"))


def member(body: JSON, *path: str) -> JSON:
    """What stands at a path in an object; None if there is nothing."""
    for name in path:
        if not isinstance(body, dict):
            return None
        body = body.get(name)
    return body


def text(body: JSON, *path: str) -> str:
    """The text that stands at a path in an object; empty if there is none."""
    found = member(body, *path)
    return found if isinstance(found, str) else ""


def object_of(value: JSON) -> Object:
    """The value if it is an object, and an empty one if not."""
    return value if isinstance(value, dict) else {}


def micro_time(instant: datetime) -> str:
    """An instant as Kubernetes' `MicroTime` spells it, for Leases and Events."""
    return f"{instant.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%fZ}"
