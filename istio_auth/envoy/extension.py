"""An extension of Envoy in JSON: a `name`, and a typed configuration with the URL of its message in `@type`."""

from __future__ import annotations

from datetime import timedelta

from istio_auth.bundle import JSON


def typed(message: str, fields: dict[str, JSON] | None = None) -> dict[str, JSON]:
    """A message packed as google.protobuf.Any, in JSON.

    Args:
        message: the full name of the message, for instance `envoy.config.rbac.v3.RBAC`.
        fields: the fields of the message.
    """
    return {"@type": f"type.googleapis.com/{message}", **(fields or {})}


def extension(name: str, message: str, fields: dict[str, JSON] | None = None) -> dict[str, JSON]:
    """One extension of Envoy: a filter, a transport socket, an access logger."""
    return {"name": name, "typed_config": typed(message, fields)}


def seconds(duration: timedelta) -> str:
    """A duration as google.protobuf.Duration writes it in JSON, to the millisecond."""
    return f"{duration.total_seconds():.3f}s"
