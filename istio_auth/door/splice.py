"""Two connections tied together: what comes in at one goes out at the other, never faster than its peer reads.

An end is an asyncio protocol over one socket. `PlainEnd` passes bytes as they are. `TLSEnd` speaks TLS on its socket,
over memory, because asyncio's own TLS does not tell why a handshake was refused and costs twice the time. When either
end closes, the bytes that have come are still delivered and then both are closed, so half-closed connections do not
last.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from typing import Protocol, cast

from istio_auth.errors import IstioAuthError, NotAuthenticated
from istio_auth.peer import HandshakeRefused

BUFFER_BYTES = 64 << 10
LINGER_SECONDS = 5.0  # how long a peer may take to read the rest after its connection was closed
_RECORD = 16 << 10  # the most that one TLS record holds (RFC 8446 5.1)


class Owner(Protocol):
    """Is told of the events of an end."""

    def made(self) -> None:
        """The end has its socket."""
        ...

    def lost(self) -> None:
        """The socket is gone."""
        ...


class TLSOwner(Owner, Protocol):
    """The same for an end that speaks TLS."""

    def ready(self) -> None:
        """The handshake is over and the peer is welcome: the end can be tied now."""
        ...

    def refused(self, reason: IstioAuthError) -> None:
        """There will be no TLS; the connection is being closed."""
        ...

    def heard(self) -> None:
        """The first bytes came through TLS."""
        ...


class PlainEnd(asyncio.BufferedProtocol):
    """One end, without TLS.

    Args:
        buffer: where incoming bytes land. All ends of one event loop may share it, since it is empty between calls.
        owner: told of the connection's events; None for nobody.
    """

    def __init__(self, buffer: memoryview, owner: Owner | None = None) -> None:
        self._buffer = buffer
        self._owner = owner
        self._other: PlainEnd | None = None
        self.transport: asyncio.Transport | None = None
        self.loop = asyncio.get_running_loop()

    def tie(self, other: PlainEnd) -> None:
        """Tie this end to another, both open, and let the bytes flow."""
        self._other, other._other = other, self
        for end in (self, other):
            end.flow()

    def send(self, data: bytes) -> None:
        """Send bytes out at this end."""
        if (transport := self.transport) is not None and not transport.is_closing():
            transport.write(data)

    def finish(self) -> None:
        """Deliver what was sent, then close."""
        if (transport := self.transport) is not None and not transport.is_closing():
            transport.close()
            if transport.get_write_buffer_size():
                self.loop.call_later(LINGER_SECONDS, transport.abort)

    def abort(self) -> None:
        """Close at once."""
        if self.transport is not None:
            self.transport.abort()

    def abort_both(self) -> None:
        """Close this end and the one it is tied to at once: bytes that were not delivered are lost."""
        for end in (self, self._other):
            if end is not None:
                end.abort()

    @property
    def lost(self) -> bool:
        """Whether the connection is closed, or closing."""
        return self.transport is None or self.transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the socket; nothing is read before the end is tied."""
        self.transport = cast("asyncio.Transport", transport)
        # Not at once: the first releases of Python 3.11 begin to read after this call, paused or not.
        self.loop.call_soon(self._hold_until_tied)
        if self._owner is not None:
            self._owner.made()

    def connection_lost(self, exc: Exception | None) -> None:
        """Close the other end too. Nothing is logged: strangers may end their connections as they like."""
        if exc is not None and self._other is not None:
            self._read_rest()
        self.transport = None
        if (other := self._other) is not None:
            self._other = None
            other.finish()
        if (owner := self._owner) is not None:
            self._owner = None
            owner.lost()

    def get_buffer(self, _sizehint: int) -> memoryview:
        """Where the next bytes shall land."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Pass the bytes on as a copy, since the other end may have to keep them for a while."""
        if self._other is not None:
            self._other.send(bytes(self._buffer[:nbytes]))

    def pause_writing(self) -> None:
        """This end's peer is slow: read no more at the other."""
        if self._other is not None:
            self._other.hold()

    def resume_writing(self) -> None:
        """This end's peer has caught up."""
        if self._other is not None:
            self._other.flow()

    def hold(self) -> None:
        """Read no more for now."""
        if self.transport is not None and not self.transport.is_closing():
            self.transport.pause_reading()

    def flow(self) -> None:
        """Read again."""
        if self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()

    def _read_rest(self) -> None:
        """Pass on what the peer said before it went: asyncio leaves it unread when a write to the peer has failed."""
        connection = cast("asyncio.Transport", self.transport).get_extra_info("socket")
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as twin:
            twin.setblocking(False)
            while size := twin.recv_into(self._buffer):
                self.buffer_updated(size)

    def _hold_until_tied(self) -> None:
        if self._other is None:
            self.hold()


class PatientEnd(PlainEnd):
    """An end that closes only its writing side at first, so that its peer can still write.

    A write to a closed Unix socket fails, and so does one to a TCP socket that was closed with bytes unread. gRPC then
    throws away what it has not read yet, such as the answer to its last call, or the message (GOAWAY) that it shall
    connect anew.
    """

    _lingering: asyncio.TimerHandle | None = None

    @property
    def lost(self) -> bool:
        """Whether the connection is closed, or closing."""
        return self._lingering is not None or super().lost

    def finish(self) -> None:
        """Deliver what was sent, then end of file; close when the peer closes, or after `LINGER_SECONDS`."""
        if self.lost or (transport := self.transport) is None:
            return
        self._lingering = self.loop.call_later(LINGER_SECONDS, transport.abort)
        try:
            transport.write_eof()
        except OSError:  # it was reset
            transport.abort()
        else:
            transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """Close the other end too, and wait no longer."""
        if self._lingering is not None:
            self._lingering.cancel()
        super().connection_lost(exc)


class TLSEnd(PatientEnd):
    """One end that speaks TLS.

    Args:
        buffer: as for `PlainEnd`.
        owner: told how the handshake ends.
        context: the TLS context.
        server_hostname: the name to ask for; None on the server side.

    Attributes:
        tls: the connection's TLS.
        heard: whether any bytes came in yet, valid or not.
        opened: whether anything came through TLS yet.
        failure: what was wrong with the TLS after its handshake.
    """

    def __init__(
        self, buffer: memoryview, owner: TLSOwner, context: ssl.SSLContext, *, server_hostname: str | None = None
    ) -> None:
        super().__init__(buffer, owner)
        self._tls_owner = owner
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_hostname is None, server_hostname=server_hostname
        )
        self._serves = server_hostname is None
        self._shaking = True
        self.heard = False
        self.opened = False
        self.failure: IstioAuthError | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the handshake, if the owner lets it."""
        self.transport = cast("asyncio.Transport", transport)
        self._tls_owner.made()
        if self._shaking:
            self._shake()

    def refuse(self, reason: IstioAuthError) -> None:
        """End the handshake with this reason; does nothing if it is over."""
        if self._shaking:
            self._shaking = False
            PlainEnd.finish(self)
            self._tls_owner.refused(reason)

    def connection_lost(self, exc: Exception | None) -> None:
        """Close the other end too; in the handshake this is a refusal."""
        self.refuse(NotAuthenticated("the connection was closed in the middle of the TLS handshake"))
        super().connection_lost(exc)

    def buffer_updated(self, nbytes: int) -> None:
        """Decrypt what came in, and pass it on; after the end there is nobody to pass it on to."""
        if self._lingering is not None:
            return
        self.heard = True
        self._incoming.write(self._buffer[:nbytes])
        if self._shaking:
            self._shake()
        else:
            self._open()

    def send(self, data: bytes) -> None:
        """Encrypt bytes and send them out at this end."""
        if not self.lost:
            try:
                self.tls.write(data)
            except ssl.SSLError:
                self.abort()
            else:
                self._flush()

    def finish(self) -> None:
        """Deliver what was sent and the end of TLS (close_notify), then end of file (see `PatientEnd`)."""
        self._end_tls()
        if self._serves:
            super().finish()
        else:  # nobody waits for what the server might still say
            PlainEnd.finish(self)

    def _end_tls(self) -> None:
        if not self.lost and not self._shaking:
            with contextlib.suppress(ssl.SSLError):  # "want read": we do not wait for the peer's close_notify
                self.tls.unwrap()
            self._flush()

    def _shake(self) -> None:
        try:
            self.tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
        except ssl.SSLError as error:
            if not isinstance(error, HandshakeRefused) or isinstance(error.__cause__, ssl.SSLError):
                self._flush()  # OpenSSL's alert; if we refused the peer, the bytes would finish the handshake
            self.refuse(_reason(error))
        else:
            self._shaking = False
            self._flush()
            self.hold()
            self._tls_owner.ready()

    def flow(self) -> None:
        """Read again, and decrypt what waits in memory."""
        super().flow()
        if self._incoming.pending or self.tls.pending():
            self._open()

    def _open(self) -> None:
        if self._other is None:
            return  # not tied yet; the bytes wait in memory and reading is paused
        pieces, more = self._pieces()
        if pieces:
            if not self.opened:
                self.opened = True
                self._tls_owner.heard()
            self._other.send(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        self._flush()
        if not more:  # the peer has ended, and waits for nothing
            self._end_tls()
            PlainEnd.finish(self)

    def _pieces(self) -> tuple[list[bytes], bool]:
        """What can be decrypted now, and whether there may be more later."""
        pieces: list[bytes] = []
        read, incoming, tls = self.tls.read, self._incoming, self.tls
        try:
            while piece := read(_RECORD):
                pieces.append(piece)
                if not incoming.pending and not tls.pending():
                    return pieces, True
        except ssl.SSLWantReadError:
            return pieces, True  # the rest of a record is still on its way
        except ssl.SSLError as error:
            self.failure = _reason(error)
        return pieces, False

    def _flush(self) -> None:
        if self._outgoing.pending and self.transport is not None:
            self.transport.write(self._outgoing.read())


def _reason(error: ssl.SSLError) -> IstioAuthError:
    if isinstance(error, HandshakeRefused):
        return error.reason_error
    if isinstance(error, ssl.SSLCertVerificationError):
        return NotAuthenticated(f"the peer's certificate is refused: {error.verify_message}")
    words = (error.reason or str(error)).replace("_", " ").lower()
    if "alert" in words:
        return NotAuthenticated(f"the peer refused the TLS handshake: {words}")
    return NotAuthenticated(f"no TLS handshake: {words}")
