"""Whether the daemon can do its work right now, and if not, why: a list of named checks, asked at each look."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import structlog

Check = Callable[[], str | None]
"""Why this part is not ready, in words that operators may read over the network; None if it is."""

_log = structlog.get_logger()
_BEFORE = "starting"


class Readiness:
    """The checks of a daemon, and whether it is starting or stopping."""

    def __init__(self) -> None:
        self._checks: dict[str, Check] = {}
        self._phase: str | None = _BEFORE

    def add(self, name: str, check: Check) -> None:
        """Ask this too. It is called on the event loop and must not block."""
        self._checks[name] = check

    def started(self) -> None:
        """From now on the checks alone decide."""
        if self._phase == _BEFORE:
            self._phase = None

    def stopping(self) -> None:
        """From now on, and for good, we are not ready."""
        self._phase = "stopping"

    def problems(self) -> Mapping[str, str]:
        """What keeps the daemon from its work, by name of the part; empty if it is ready."""
        found = {"daemon": self._phase} if self._phase else {}
        for name, check in self._checks.items():
            if (reason := _asked(name, check)) is not None:
                found[name] = reason
        return found


def _asked(name: str, check: Check) -> str | None:
    try:
        return check()
    except Exception:  # noqa: BLE001  # a check that fails says "not ready", whatever it failed with
        _log.exception("a readiness check failed", check=name)
        return "the check itself failed"
