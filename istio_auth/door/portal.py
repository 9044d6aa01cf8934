"""The portal for gRPC clients: a private Unix socket whose connections are spliced to a TLS server.

A gRPC client dials `Portal.target` without TLS. For each of its connections the portal dials the server, with the TLS
context's present SVID and bundles. So a server is verified by its SPIFFE ID, and a rotation needs no new channel. gRPC
tells its user only that a connection failed; `Portal.last_error` tells why.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from datetime import timedelta
from pathlib import Path
from typing import Self, cast

import aiohappyeyeballs

from istio_auth.door.splice import BUFFER_BYTES, PatientEnd, TLSEnd
from istio_auth.door.unix_socket import BACKLOG, PrivateFolder, close_listener, listening_socket
from istio_auth.errors import IstioAuthError, NotReady
from istio_auth.host_port import HostPort

_LOG = logging.getLogger("istio_auth.portal")
_HAPPY_EYEBALLS_SECONDS = 0.25  # RFC 8305 5


class Portal:
    """A private Unix socket whose connections are spliced to a TLS server. An async context manager.

    Args:
        host: the server's address or name, IPv6 too.
        port: the server's port.
        context: verifies the server and decides whether it is the right one; made by `istio_auth.tls.client_context`.
        folder: where to make the private folder; the machine's folder for temporary files by default.
        patience: how long one dial may take, TLS included.

    Attributes:
        target: what a gRPC channel dials.
        authority: the server's own name, for the channel's `:authority`.
        last_error: why the latest connection failed; None once a server has answered.

    Raises:
        ConfigurationError: the private folder can not be made, or its path is too long for a socket.
    """

    def __init__(
        self,
        host: str,
        port: int,
        context: ssl.SSLContext,
        *,
        folder: Path | None = None,
        patience: timedelta = timedelta(seconds=10),
    ) -> None:
        self.host, self.port = host, port
        self.authority = str(HostPort(host, port))
        self.last_error: IstioAuthError | None = None
        self.context = context
        self.patience = patience
        self.passages: set[_Passage] = set()
        self._private = PrivateFolder(folder)
        self._path = self._private.socket_path("portal")
        self.target = f"unix:{self._path}"
        self._buffer = memoryview(bytearray(BUFFER_BYTES))
        self._listener: asyncio.Server | None = None

    @property
    def is_open(self) -> bool:
        """Whether it takes connections."""
        return self._listener is not None

    @property
    def channel_options(self) -> tuple[tuple[str, int | str], ...]:
        """What a gRPC channel that dials `target` must be told."""
        return ("grpc.default_authority", self.authority), ("grpc.enable_http_proxy", 0)

    @property
    def unreached(self) -> str | None:
        """Why calls get no answer, in words for their caller; None if nothing is known to be wrong."""
        return None if (error := self.last_error) is None else f"{self.authority} was not reached: {error}"

    async def start(self) -> None:
        """Begin to take connections."""
        listening = listening_socket(self._path, 0o600)
        self._listener = await asyncio.get_running_loop().create_unix_server(
            lambda: _Passage(self, self._buffer).near, sock=listening, backlog=BACKLOG
        )

    async def close(self) -> None:
        """End every connection, and take no more."""
        if self._listener is not None:
            close_listener(self._listener)
            self._listener = None
        for passage in list(self.passages):
            passage.close()
        self._private.remove()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()


class _Passage:
    """One connection of gRPC to the portal, and the connection to the server that is dialled for it."""

    def __init__(self, portal: Portal, buffer: memoryview) -> None:
        self._portal = portal
        self._buffer = buffer
        self.near = PatientEnd(buffer, self)
        self.out: TLSEnd | None = None
        self.secured: asyncio.Future[None] = self.near.loop.create_future()
        self._dialling: asyncio.Task[None] | None = None

    @property
    def is_secured(self) -> bool:
        """Whether the right server is, or was, at the other end."""
        return self.secured.done() and not self.secured.cancelled() and self.secured.exception() is None

    def made(self) -> None:
        """Dial the server, unless the portal was closed while the loop accepted this connection."""
        if not self._portal.is_open:
            self.near.abort()
            return
        self._portal.passages.add(self)
        self._dialling = self.near.loop.create_task(self._dial())

    def lost(self) -> None:
        """Forget the connection."""
        self._portal.passages.discard(self)
        if self._dialling is not None:
            self._dialling.cancel()

    def close(self) -> None:
        """End it at once."""
        self.near.abort()
        if self.out is not None:
            self.out.abort()

    def fail(self, error: IstioAuthError) -> None:
        """Record why there is no connection. A reason is logged once, since gRPC tries again every few seconds."""
        last = self._portal.last_error
        level = logging.DEBUG if last is not None and str(last) == str(error) else logging.WARNING
        _LOG.log(level, "no connection to %s: %s", self._portal.authority, error)
        self._portal.last_error = error

    async def _dial(self) -> None:
        portal, patience = self._portal, self._portal.patience.total_seconds()
        try:
            async with asyncio.timeout(patience):
                await self.near.loop.create_connection(self._way_out, sock=await self._connection())
                await self.secured
        except TimeoutError:
            self.fail(NotReady(f"{portal.authority} did not answer within {patience:g} s"))
        except (OSError, ValueError) as error:  # ValueError: a name that no address can have
            self.fail(NotReady(f"{portal.authority} can not be reached: {error}"))
        except IstioAuthError as error:
            self.fail(error)
        finally:
            self._dialling = None
            if self.out is not None and self.is_secured and not (self.out.lost or self.near.lost):
                self.near.tie(self.out)
            else:
                self.close()

    async def _connection(self) -> socket.socket:
        """Connect to the first of the server's addresses that answers (RFC 8305). asyncio's own way leaks sockets."""
        host, port = self._portal.host, self._portal.port
        addresses = await self.near.loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return await aiohappyeyeballs.start_connection(addresses, happy_eyeballs_delay=_HAPPY_EYEBALLS_SECONDS)

    def _way_out(self) -> TLSEnd:
        portal = self._portal
        self.out = TLSEnd(self._buffer, _WayOut(self, portal), portal.context, server_hostname=portal.host)
        return self.out


class _WayOut:
    """Handles the events of the connection to the server."""

    def __init__(self, passage: _Passage, portal: Portal) -> None:
        self._passage = passage
        self._portal = portal

    def made(self) -> None:
        """Nothing to do: the handshake begins by itself."""

    def ready(self) -> None:
        """The server is the right one. Whether it accepts our certificate is not known yet."""
        if not self._passage.secured.done():
            self._passage.secured.set_result(None)

    def refused(self, reason: IstioAuthError) -> None:
        """The server is not the right one, or there is no TLS."""
        if not self._passage.secured.done():
            self._passage.secured.set_exception(reason)

    def heard(self) -> None:
        """The server has answered."""
        self._portal.last_error = None

    def lost(self) -> None:
        """A server that closes before its first word has refused our certificate, or is going away."""
        passage, out = self._passage, cast("TLSEnd", self._passage.out)
        closed_by_us = passage not in self._portal.passages
        if passage.is_secured and not out.opened and not closed_by_us:
            passage.fail(out.failure or NotReady(f"{self._portal.authority} closed the connection without a word"))
