"""Time as an argument: the `Clock` port and the arithmetic on instants that everybody shares.

All instants are timezone-aware and in UTC. The real clock is `istio_auth.system_clock`. Only programs, sources,
TLS contexts and token verifiers use it by themselves: a pure module is given the time.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Protocol

from istio_auth.errors import ConfigurationError

_UNITS = {"ms": timedelta(milliseconds=1), "s": timedelta(seconds=1), "m": timedelta(minutes=1)}
_UNITS |= {"h": timedelta(hours=1), "d": timedelta(days=1)}
_LONGEST = timedelta(days=100 * 365)  # an instant of this century plus this is still a valid date


class Clock(Protocol):
    """Tells the time."""

    def now(self) -> datetime:
        """The present instant, in UTC."""
        ...


def whole_seconds(instant: datetime) -> datetime:
    """The instant without its fraction of a second, as X.509 can express it (RFC 5280 4.1.2.5)."""
    return instant.astimezone(UTC).replace(microsecond=0)


def parse_duration(text: str) -> timedelta:
    """A positive duration such as `90s`, `15m`, `24h`, `30d` or a sum of them (`1h30m`).

    Raises:
        ConfigurationError: the text is no such duration.
    """
    total, rest = timedelta(), text.strip()
    while rest:
        digits = len(rest) - len(rest.lstrip("0123456789"))
        unit = "ms" if rest[digits : digits + 2] == "ms" else rest[digits : digits + 1]
        if not 0 < digits <= 9 or unit not in _UNITS:
            raise ConfigurationError(f"{text[:100]!r} is no duration: write for instance 90s, 15m, 24h, 30d or 1h30m")
        total += int(rest[:digits]) * _UNITS[unit]
        if total > _LONGEST:
            raise ConfigurationError(f"{text[:100]!r} is too long: at most {_LONGEST.days}d")
        rest = rest[digits + len(unit) :]
    if total <= timedelta():
        raise ConfigurationError(f"{text[:100]!r} is no duration: it must be longer than nothing")
    return total


def duration_text(duration: timedelta) -> str:
    """The text from which `parse_duration` makes this duration again, to the millisecond: `1d12h`, `1m30s`."""
    rest, parts = duration // _UNITS["ms"], ""
    for unit in ("d", "h", "m", "s", "ms"):
        count, rest = divmod(rest, _UNITS[unit] // _UNITS["ms"])
        if count:
            parts += f"{count}{unit}"
    return parts or "0s"


def in_words(duration: timedelta) -> str:
    """A duration for people, in its two largest units: `3 days 4 hours`, `12 seconds`, `0 seconds`."""
    seconds = int(abs(duration).total_seconds())
    parts: list[str] = []
    for name, size in (("day", 86400), ("hour", 3600), ("minute", 60), ("second", 1)):
        count, seconds = divmod(seconds, size)
        if count:
            parts.append(f"{count} {name}{'s' if count != 1 else ''}")
    return " ".join(parts[:2]) or "0 seconds"
