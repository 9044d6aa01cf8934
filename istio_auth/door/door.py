"""Listeners that learn who calls before a server sees a byte."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Self

from istio_auth.door.callers import Caller, UnixCaller
from istio_auth.errors import IstioAuthError, NotAuthenticated, NotReady


@dataclass(frozen=True, slots=True)
class DoorLimits:
    """How much a door takes on.

    Args:
        connections: open at once, over all listeners.
        per_caller: open at once from one address, or from one user id.
        handshake: how long a caller may take to prove itself.
    """

    connections: int = 10_000
    per_caller: int = 2_000
    handshake: timedelta = timedelta(seconds=10)


class Door:
    """One private server, and the listeners in front of it. An async context manager."""

    def __init__(
        self,
        *,
        folder: Path | None = None,
        limits: DoorLimits | None = None,
        on_refused: Callable[[str, IstioAuthError], None] | None = None,
    ) -> None:
        self.target = "unix:"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close(timedelta())

    async def listen_tls(self, host: str, port: int, context: ssl.SSLContext) -> tuple[str, int]:
        """Listen for TLS."""
        raise NotReady("in work")

    async def listen_unix(
        self,
        path: Path,
        *,
        name: str,
        mode: int = 0o600,
        admit: Callable[[UnixCaller], None] | None = None,
    ) -> None:
        """Listen on a Unix socket."""
        raise NotReady("in work")

    def caller(self, peer: str) -> Caller:
        """Who is behind a connection to the private server, by `context.peer()`."""
        raise NotAuthenticated("in work")

    def stop_listening(self) -> None:
        """Take no new connections."""

    async def close(self, grace: timedelta) -> None:
        """Stop listening, then end the connections."""
