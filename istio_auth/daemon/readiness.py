"""Whether the daemon can do its work right now, and if not, why: named checks, asked each time somebody looks.

There are remarks as well: what an operator should look at although the work goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import structlog

Check = Callable[[], str | None]
"""What is wrong with this part, in words that operators may read over the network; None if nothing is."""

_log = structlog.get_logger()
_BEFORE = "starting"


class Readiness:
    """The checks of a daemon, and whether it is starting or stopping."""

    def __init__(self) -> None:
        self._checks: dict[str, Check] = {}
        self._remarks: dict[str, Check] = {}
        self._phase: str | None = _BEFORE

    def add(self, name: str, check: Check) -> None:
        """Add a check. It is called on the event loop and must not block."""
        self._checks[name] = check

    def mention(self, name: str, check: Check) -> None:
        """Add a remark, which does not make the daemon unready (see `add`)."""
        self._remarks[name] = check

    def started(self) -> None:
        """From now on the checks alone decide."""
        if self._phase == _BEFORE:
            self._phase = None

    def stopping(self) -> None:
        """From now on, and for good, we are not ready."""
        self._phase = "stopping"

    def problems(self) -> Mapping[str, str]:
        """What keeps the daemon from its work, by name of the part; empty if it is ready."""
        return ({"daemon": self._phase} if self._phase else {}) | _answers(self._checks)

    def remarks(self) -> Mapping[str, str]:
        """What an operator should look at, by name of the part, whether it is ready or not."""
        return _answers(self._remarks)


def _answers(checks: Mapping[str, Check]) -> dict[str, str]:
    asked = {name: _asked(name, check) for name, check in checks.items()}
    return {name: reason for name, reason in asked.items() if reason is not None}


def _asked(name: str, check: Check) -> str | None:
    try:
        return check()
    except Exception:  # noqa: BLE001  # a check that fails says "not ready", whatever it failed with
        _log.exception("a readiness check failed", check=name)
        return "the check itself failed"
