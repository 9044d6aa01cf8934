"""Listeners that learn who calls before a server sees a byte.

Python's gRPC tells a handler neither the credentials of a Unix peer nor a TLS peer's chain. So the real server listens
privately (on `Door.target`, in a folder of mode 0700), and every caller comes through a listener here. First we learn
who the caller is. Then its connection is spliced to the private server, from a socket bound to a random 128-bit name.
The server sees that name as its peer, and `Door.caller` tells who is behind it; a name that it does not know is
refused.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple, Self

from istio_auth.door.callers import Caller, UnixCaller
from istio_auth.door.register import DoorLimits, Register
from istio_auth.door.tcp_socket import listening_sockets
from istio_auth.door.unix_socket import (
    BACKLOG,
    PrivateFolder,
    close_listener,
    listening_socket,
    sweep_private_folders,
)
from istio_auth.door.visit import TLSVisit, UnixVisit
from istio_auth.errors import IstioAuthError


class Door:
    """One private server, and the listeners in front of it. An async context manager.

    Args:
        folder: where to make the private folder; the machine's folder for temporary files by default.
        limits: how many callers it takes.
        on_refused: called for each caller that was turned away, with the listener's name (`tls`, or the Unix listener's
            own) and the reason; not for a TLS caller that left, or came too late, without having sent a byte.

    Attributes:
        target: what the private gRPC server binds to.

    Raises:
        ConfigurationError: the private folder can not be made, or its path is too long for a socket.
    """

    def __init__(
        self,
        *,
        folder: Path | None = None,
        limits: DoorLimits | None = None,
        on_refused: Callable[[str, IstioAuthError], None] | None = None,
    ) -> None:
        sweep_private_folders(folder)
        self._private = PrivateFolder(folder)
        self._server_path = self._private.socket_path("server")
        self.target = f"unix:{self._server_path}"
        self._register = Register(self._server_path, limits or DoorLimits(), on_refused)
        self._listeners: list[tuple[asyncio.Server, _Place | None]] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close(timedelta())

    @property
    def connections(self) -> int:
        """How many callers are connected now, including those in their handshake."""
        return self._register.connections

    @property
    def accepted(self) -> int:
        """How many callers were let through so far."""
        return self._register.accepted

    @property
    def refused(self) -> int:
        """How many callers were turned away so far, counted as `on_refused` is called."""
        return self._register.refused

    async def listen_tls(self, host: str, port: int, context: ssl.SSLContext) -> tuple[str, int]:
        """Listen for callers over TLS.

        Args:
            host: an address, or a name for all of its addresses; empty, and `::`, for every address, IPv6 and IPv4.
            port: 0 for any that is free.
            context: decides who is welcome; made by `istio_auth.tls.server_context`.

        Returns:
            the address and the port that were taken.

        Raises:
            ConfigurationError: there is no such address here, or we may not listen on it.
            NotReady: somebody else listens there, or the machine is out of sockets.
        """
        loop, sockets = asyncio.get_running_loop(), listening_sockets(host, port)
        for listening in sockets:
            listener = await loop.create_server(
                lambda: TLSVisit(self._register, context).end, sock=listening, backlog=BACKLOG
            )
            self._listeners.append((listener, None))
        taken: tuple[str, int] = sockets[0].getsockname()[:2]
        return taken

    async def listen_unix(
        self,
        path: Path,
        *,
        name: str,
        mode: int = 0o600,
        admit: Callable[[UnixCaller], None] | None = None,
        as_one: bool = False,
    ) -> None:
        """Listen for processes of this machine.

        Args:
            path: where the socket shall be; one that nobody listens on is replaced.
            name: the listener's name, for logs and for `UnixCaller.socket`.
            mode: the permissions of the socket's file.
            admit: raises `NotAuthorized` for callers that are not welcome.
            as_one: count all connections through this socket together (`DoorLimits.per_caller`), and not by user.

        Raises:
            ConfigurationError: no socket can be made at this path.
            NotReady: another process listens there.
        """
        listening = listening_socket(path, mode)
        listener = await asyncio.get_running_loop().create_unix_server(
            lambda: UnixVisit(self._register, name, admit, as_one=as_one).end, sock=listening, backlog=BACKLOG
        )
        self._listeners.append((listener, _Place.of(path)))

    def caller(self, peer: str) -> Caller:
        """Who is behind a connection to the private server.

        Args:
            peer: what the server calls its peer: gRPC's `context.peer()`.

        Raises:
            NotAuthenticated: no caller that is connected through this door.
        """
        return self._register.caller(peer)

    def is_lost(self, path: Path) -> bool:
        """Whether we listen at this socket but callers can not find it: it was removed, or another is in its place."""
        return any(place is not None and place.path == path and not place.is_there() for _, place in self._listeners)

    def stop_listening(self) -> None:
        """Take no new callers; those that are connected stay."""
        for listener, place in self._listeners:
            _end(listener, place)
        self._listeners.clear()

    def stop_listening_at(self, path: Path) -> None:
        """Take no new callers at this socket; those that are connected stay. Does nothing if we do not listen there."""
        here = [each for each in self._listeners if each[1] is not None and each[1].path == path]
        self._listeners = [each for each in self._listeners if each not in here]
        for listener, place in here:
            _end(listener, place)

    async def close(self, grace: timedelta) -> None:
        """Stop listening, wait up to `grace` for the connected callers to leave, then end their connections."""
        self.stop_listening()
        try:
            async with asyncio.timeout(grace.total_seconds()):
                await self._register.empty.wait()
        except TimeoutError:
            pass
        finally:
            self._register.send_away()
        await self._register.empty.wait()
        self._private.remove()


class _Place(NamedTuple):
    """Where the socket of a Unix listener is."""

    path: Path
    file: tuple[int, int]  # device and inode: a socket of the same path may be another's

    @classmethod
    def of(cls, path: Path) -> Self:
        return cls(path, _file(path))

    def is_there(self) -> bool:
        try:
            return _file(self.path) == self.file
        except OSError:
            return False


def _file(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_dev, found.st_ino


def _end(listener: asyncio.Server, place: _Place | None) -> None:
    if place is not None and place.is_there():
        place.path.unlink(missing_ok=True)
    close_listener(listener)
