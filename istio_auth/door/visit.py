"""One caller's connection, from its first byte to its last: learns who it is, and splices it to the private server."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from socket import socket as Socket  # noqa: N812  # a field of UnixCaller is called socket
from typing import cast

from istio_auth.door.callers import Caller, TLSCaller, UnixCaller
from istio_auth.door.register import Register
from istio_auth.door.splice import PatientEnd, PlainEnd, TLSEnd
from istio_auth.door.unix_socket import connect_under_a_name
from istio_auth.errors import IstioAuthError, NotAuthenticated, NotReady
from istio_auth.host_port import HostPort
from istio_auth.peer import JudgedConnection

_LOG = logging.getLogger("istio_auth.door")
_TRIES, _SECONDS_BETWEEN = 20, 0.05  # while the private server's queue of new connections is full


class _Visit:
    """What both kinds of callers have in common."""

    end: PlainEnd
    listener: str

    def __init__(self, register: Register) -> None:
        self._register = register
        self._address = ""
        self._name = ""
        self._entering: asyncio.Task[None] | None = None

    def send_away(self) -> None:
        """Close the connection at once, and the one to the private server."""
        self.end.abort_both()

    def lost(self) -> None:
        """Forget the caller and its name, and stop connecting it to the server if that is still going on."""
        if self._entering is not None:
            self._entering.cancel()
        self._register.leave(self, self._name)

    def refused(self, reason: IstioAuthError) -> None:
        """Log that the caller was turned away."""
        self._register.refuse(self.listener, self._address, reason)

    def _enter(self, caller: Caller) -> None:
        self._entering = asyncio.get_running_loop().create_task(self._splice(caller))

    async def _splice(self, caller: Caller) -> None:
        try:
            far = await self._reach_server(caller)
        except (IstioAuthError, OSError) as error:
            self.refused(error if isinstance(error, IstioAuthError) else NotReady(f"no private connection: {error}"))
            self.end.abort()
        else:
            if self.end.lost:
                far.abort()
            else:
                self.end.tie(far)
        finally:
            self._entering = None

    async def _reach_server(self, caller: Caller) -> PlainEnd:
        for _ in range(_TRIES):
            try:
                connection, self._name = connect_under_a_name(self._register.server_path)
                break
            except BlockingIOError:
                await asyncio.sleep(_SECONDS_BETWEEN)
        else:
            raise NotReady("the private server is too busy to take a connection")
        if not self.end.lost:
            self._register.admit(self._name, caller)
        far = PlainEnd(self._register.buffer)
        await asyncio.get_running_loop().create_unix_connection(lambda: far, sock=connection)
        return far


class TLSVisit(_Visit):
    """A caller over TLS.

    Args:
        register: the callers of the door.
        context: decides who is welcome.
    """

    listener = "tls"
    end: TLSEnd

    def __init__(self, register: Register, context: ssl.SSLContext) -> None:
        super().__init__(register)
        self.end = TLSEnd(register.buffer, self, context)
        self._too_late: asyncio.TimerHandle | None = None

    def made(self) -> None:
        """Count the caller in, and limit the time of its handshake."""
        host, port = cast("asyncio.Transport", self.end.transport).get_extra_info("peername")[:2]
        if "." in host:
            host = host.removeprefix("::ffff:")  # how IPv4 looks at a socket for both families
        self._address = str(HostPort(host, port))
        try:
            self._register.enter(self, host)
        except IstioAuthError as error:
            self.end.refuse(error)
            return
        limit = self._register.limits.handshake.total_seconds()
        self._too_late = self.end.loop.call_later(
            limit, lambda: self.end.refuse(NotAuthenticated(f"no TLS handshake within {limit:g} s"))
        )

    def ready(self) -> None:
        """Let the caller in."""
        self._stop_clock()
        peer = cast("JudgedConnection", self.end.tls).verified_peer()
        self._enter(TLSCaller(peer.chain, peer.spiffe_id, self._address))

    def refused(self, reason: IstioAuthError) -> None:
        """Count and log the caller as turned away; but not one that never sent a byte, such as a port check."""
        self._stop_clock()
        if not self.end.heard and isinstance(reason, NotAuthenticated):
            _LOG.debug("a caller from %s left without a word", self._address)
        else:
            super().refused(reason)

    def heard(self) -> None:
        """Nothing to do: the first bytes are for the private server."""

    def _stop_clock(self) -> None:
        if self._too_late is not None:
            self._too_late.cancel()
            self._too_late = None


class UnixVisit(_Visit):
    """A process of this machine.

    Args:
        register: the callers of the door.
        name: the listener's name.
        admit: raises `NotAuthorized` for callers that are not welcome.
        as_one: whether all connections through the listener are counted together, and not by user.
    """

    def __init__(
        self, register: Register, name: str, admit: Callable[[UnixCaller], None] | None, *, as_one: bool = False
    ) -> None:
        super().__init__(register)
        self._as_one = as_one
        self.listener = name
        self.end = PatientEnd(register.buffer, self)
        self._admit = admit
        self._caller: UnixCaller | None = None

    def made(self) -> None:
        """Learn who it is, and let it in if it is welcome."""
        transport = cast("asyncio.Transport", self.end.transport)
        connection = cast("Socket", transport.get_extra_info("socket"))
        self._address = "an unknown process"
        try:
            self._caller = caller = UnixCaller.of(connection, name=self.listener)
            self._address = f"pid {caller.pid} uid {caller.uid}"
            if self._as_one:
                self._register.enter(self, f"socket {self.listener}")
            else:
                self._register.enter(self, f"uid {caller.uid}", process=f"process {caller.pid}" if caller.pid else None)
            if self._admit is not None:
                self._admit(caller)
        except IstioAuthError as error:
            self.refused(error)
            self.end.abort()
        except Exception as error:  # noqa: BLE001  # whatever `admit` raises, the caller does not get in
            self.refused(IstioAuthError(f"deciding on it failed: {error!r}"))
            self.end.abort()
        else:
            self._enter(caller)

    def lost(self) -> None:
        """Forget the caller, and close the handle to its process."""
        super().lost()
        if self._caller is not None and self._caller.process is not None:
            self._caller.process.close()
