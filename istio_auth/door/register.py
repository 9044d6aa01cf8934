"""Who is at the door: counted, bounded, known by name, and logged when turned away."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Protocol

from istio_auth.door.callers import Caller
from istio_auth.door.splice import BUFFER_BYTES
from istio_auth.errors import Exhausted, IstioAuthError, NotAuthenticated, NotReady, VerificationError
from istio_auth.log_limit import LogLimit

_LOG = logging.getLogger("istio_auth.door")
_PEER_PREFIX = "unix-abstract:"


@dataclass(frozen=True, slots=True)
class DoorLimits:
    """How much a door takes on.

    Args:
        connections: open at once, over all listeners.
        per_caller: open at once from one address, or from one user id.
        per_process: open at once from one process of this machine.
        reserve: kept free for callers that have few open, so that those with many can not take all.
        few: up to so many of one caller are few.
        handshake: how long a caller may take to prove itself.
    """

    connections: int = 10_000
    per_caller: int = 2_000
    per_process: int = 2_000
    reserve: int = 0
    few: int = 8
    handshake: timedelta = timedelta(seconds=10)


class Guest(Protocol):
    """A connection at the door."""

    def send_away(self) -> None:
        """Close it at once."""
        ...


class Register:
    """The door's book.

    Args:
        server_path: the private server's socket.
        limits: how much the door takes on.
        on_refused: see `Door`.

    Attributes:
        buffer: where incoming bytes land, shared by all connections.
        empty: set while nobody is here.
    """

    def __init__(
        self, server_path: Path, limits: DoorLimits, on_refused: Callable[[str, IstioAuthError], None] | None
    ) -> None:
        self.server_path = server_path
        self.limits = limits
        self.buffer = memoryview(bytearray(BUFFER_BYTES))
        self.accepted = 0
        self.refused = 0
        self.empty = asyncio.Event()
        self.empty.set()
        self._on_refused = on_refused
        self._guests: dict[Guest, tuple[str, ...]] = {}
        self._guests_of: Counter[str] = Counter()
        self._callers: dict[str, Caller] = {}
        self._closed = False
        self._lines = LogLimit()

    @property
    def connections(self) -> int:
        """How many are here."""
        return len(self._guests)

    def enter(self, guest: Guest, whose: str, *, process: str | None = None) -> None:
        """Count a connection in.

        Args:
            guest: the connection.
            whose: what its caller's connections are counted under.
            process: what its process's are counted under as well, if it is one of this machine.

        Raises:
            NotReady: all were sent away; it is not counted.
            Exhausted: there are too many; likewise.
        """
        if self._closed:
            raise NotReady("the door is closed")
        limits, here, theirs = self.limits, len(self._guests), self._guests_of[whose]
        if here >= limits.connections - (limits.reserve if theirs >= limits.few else 0):
            raise Exhausted(f"{here} connections are open, no more are taken")
        counted = {whose: limits.per_caller} | ({process: limits.per_process} if process else {})
        for name, limit in counted.items():
            if self._guests_of[name] >= limit:
                raise Exhausted(f"{self._guests_of[name]} connections of {name} are open, no more are taken")
        self._guests[guest] = tuple(counted)
        self._guests_of.update(counted.keys())
        self.empty.clear()

    def leave(self, guest: Guest, name: str) -> None:
        """Count a connection out, if it was counted in, and forget its name."""
        self._callers.pop(name, None)
        for counted in self._guests.pop(guest, ()):
            self._guests_of[counted] -= 1
            if not self._guests_of[counted]:
                del self._guests_of[counted]
        if not self._guests:
            self.empty.set()

    def admit(self, name: str, caller: Caller) -> None:
        """Remember who is behind a name that the private server will see."""
        self._callers[name] = caller
        self.accepted += 1

    def caller(self, peer: str) -> Caller:
        """Who is behind what gRPC calls its peer (see `Door.caller`)."""
        try:
            return self._callers[peer.removeprefix(_PEER_PREFIX)]
        except KeyError:
            raise NotAuthenticated(f"{peer!r} did not come through the door") from None

    def refuse(self, listener: str, address: str, reason: IstioAuthError) -> None:
        """Count a caller that was turned away, and log it; who is over a limit has one line a minute."""
        self.refused += 1
        fault = reason.fault.value if isinstance(reason, VerificationError) else reason.code.value
        where = {"listener": listener, "address": address, "fault": fault}
        if not isinstance(reason, Exhausted) or self._lines.allows(f"{listener} {address}"):
            _LOG.warning("refused a caller at %s from %s: %s", listener, address, reason, extra=where)
        if self._on_refused is not None:
            self._on_refused(listener, reason)

    def send_away(self) -> None:
        """Close every connection at once, and let nobody in any more."""
        self._closed = True
        for guest in list(self._guests):
            guest.send_away()
