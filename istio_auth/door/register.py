"""The callers at a door: counts and limits them, knows who is behind a name, and logs those that are turned away."""

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
from istio_auth.log_limit import LogLimit, without_port

_LOG = logging.getLogger("istio_auth.door")
_PEER_PREFIX = "unix-abstract:"


@dataclass(frozen=True, slots=True)
class DoorLimits:
    """How many connections a door takes.

    Args:
        connections: open at once, over all listeners.
        per_caller: open at once from one address or one user id, or through one socket that counts as one caller.
        per_process: open at once from one process of this machine.
        reserve: how many of `connections` are kept free for callers that have few open.
        few: how many connections of one caller are few.
        handshake: how long a TLS handshake may take.
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
    """The callers of one door.

    Args:
        server_path: the private server's socket.
        limits: how many connections the door takes.
        on_refused: see `Door`.

    Attributes:
        buffer: where incoming bytes land, shared by all connections.
        empty: set while nobody is connected.
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
        """How many are connected."""
        return len(self._guests)

    def enter(self, guest: Guest, whose: str, *, process: str | None = None) -> None:
        """Count a connection in.

        Args:
            guest: the connection.
            whose: the name under which its caller's connections are counted.
            process: the name under which its process's connections are counted as well; None for none.

        Raises:
            NotReady: the door is closed; the connection is not counted.
            Exhausted: there are too many; the connection is not counted.
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
        """The caller behind the peer that gRPC names (see `Door.caller`)."""
        try:
            return self._callers[peer.removeprefix(_PEER_PREFIX)]
        except KeyError:
            raise NotAuthenticated(f"{peer!r} did not come through the door") from None

    def refuse(self, listener: str, address: str, reason: IstioAuthError) -> None:
        """Count and log a caller that was turned away; one over a limit is logged as often as `LogLimit` allows."""
        self.refused += 1
        fault = reason.fault.value if isinstance(reason, VerificationError) else reason.code.value
        where = {"listener": listener, "address": address, "fault": fault}
        if not isinstance(reason, Exhausted) or self._lines.allows(f"{listener} {without_port(address)}"):
            _LOG.warning("refused a caller at %s from %s: %s", listener, address, reason, extra=where)
        if self._on_refused is not None:
            self._on_refused(listener, reason)

    def send_away(self) -> None:
        """Close every connection at once, and let nobody in any more."""
        self._closed = True
        for guest in list(self._guests):
            guest.send_away()
