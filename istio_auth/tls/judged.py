"""TLS connections that pass no byte before the peer is verified, whichever method is called first.

A hook on `do_handshake` alone would not be enough: OpenSSL finishes a handshake inside the first read or write as well,
and resumes sessions. So every method that can start or finish a handshake calls `_pass_gate`, which completes the
handshake and the verdict on the peer, or raises. A refusal is final. If the peer is admitted, the class of the
connection is changed to one without the gate, whose reads and writes are those of the standard library and cost nothing
more. A socket whose TLS layer is gone (it was shut down, or its connect failed) gets the gate again and moves no bytes:
the base class would fall back to plain text.
"""

from __future__ import annotations

import encodings.idna  # noqa: F401  # ssl does so in the first handshake; a fork meanwhile would leave its lock held
import errno
import logging
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar, Never, Protocol, cast

from istio_auth.errors import Fault, IstioAuthError, NotAuthenticated, NotReady, VerificationError
from istio_auth.peer import HandshakeRefused, PeerRefused, VerifiedPeer
from istio_auth.tls import alpn

if TYPE_CHECKING:
    from socket import _Address, _RetAddress, _SendableFile

    from _typeshed import ReadableBuffer, WriteableBuffer

_LOG = logging.getLogger(__name__)

# X509_V_ERR_* of OpenSSL, for chains that it refuses before we see them. It does not check times: we do.
_FAULTS = {
    22: Fault.TOO_LONG,
    26: Fault.EXTENDED_KEY_USAGE,  # "unsuitable certificate purpose": key usage or extended key usage
    66: Fault.WEAK_KEY,
    67: Fault.WEAK_KEY,
}


class JudgingContext(ssl.SSLContext):
    """The context of one snapshot, for all connections that begin with that snapshot.

    Attributes:
        judge: verifies the chain that a peer presented (DER, leaf first) and returns the peer, or raises
            `IstioAuthError`.
        renewed: gives the context for a connection that begins now.
        unusable: why no connection can be made with this context; None if one can.
        istio_alpn: whether protocols are offered under Istio's names, and returned under their own.
    """

    judge: Callable[[Sequence[bytes]], VerifiedPeer]
    renewed: Callable[[], JudgingContext]
    unusable: IstioAuthError | None = None
    istio_alpn = False


class _Judged:
    """A connection with a verdict on its peer."""

    _judging: JudgingContext | None = None
    _verdict: VerifiedPeer | IstioAuthError | None = None

    def verified_peer(self) -> VerifiedPeer:
        """The peer, once the handshake is over.

        Raises:
            NotAuthenticated: the handshake is not over, or the peer was refused.
        """
        if isinstance(self._verdict, VerifiedPeer):
            return self._verdict
        raise NotAuthenticated(
            str(self._verdict) if self._verdict else "the TLS handshake is not over: end it by do_handshake()"
        )

    def verify_client_post_handshake(self) -> Never:
        """Always refused: the peer could present another certificate after it was verified.

        Raises:
            HandshakeRefused: always.
        """
        raise HandshakeRefused(NotAuthenticated("the peer's certificate is asked for in the handshake only"))

    def _plain_name(self, selected: str | None) -> str | None:
        return alpn.meant(selected) if self._judging is not None and self._judging.istio_alpn else selected


class _Gate(_Judged):
    """A connection that waits for its verdict, or was refused."""

    _welcome: ClassVar[type]

    def _pass_gate(self, context: ssl.SSLContext, handshake: Callable[[], object]) -> None:
        """Complete the handshake and the verdict, once.

        Raises:
            ssl.SSLWantReadError, ssl.SSLWantWriteError: as `handshake` does; call again.
            HandshakeRefused: the peer is refused (again at each later call), or no connection can be made.
        """
        if isinstance(self._verdict, VerifiedPeer):
            return
        if self._verdict is not None:
            raise PeerRefused(self._verdict)
        if self._judging is None:  # before the first step: a callback of the handshake may replace the context
            self._judging = _judging(context)
        if self._judging.unusable is not None:
            raise HandshakeRefused(self._judging.unusable)
        try:
            handshake()
        except ssl.SSLError as error:
            if (reason := _reason_of(error)) is None:
                raise
            self._refuse(reason, error)
        try:
            self._verdict = self._judging.judge(_presented(self))
        except IstioAuthError as error:
            self._refuse(error, error)
        except Exception as error:  # noqa: BLE001  # whatever an authorizer raises, the peer does not get in
            self._refuse(IstioAuthError(f"judging the peer failed: {error!r}"), error)
        except BaseException:
            self._verdict = IstioAuthError("judging the peer was interrupted")
            raise
        self.__class__ = self._welcome  # from now on reads and writes are the base's

    def _refuse(self, reason: IstioAuthError, cause: Exception) -> None:
        self._verdict = reason
        _LOG.debug("TLS peer refused: %s", reason)
        raise PeerRefused(reason) from cause


class JudgedObject(_Judged, ssl.SSLObject):
    """TLS over memory, as asyncio uses it, once its peer is verified."""

    def selected_alpn_protocol(self) -> str | None:
        """The protocol that both ends speak, by its plain name."""
        return self._plain_name(super().selected_alpn_protocol())


class GatedObject(_Gate, JudgedObject):
    """TLS over memory whose peer is not verified yet."""

    _welcome = JudgedObject

    def do_handshake(self) -> None:
        """Complete the handshake and the verdict, or raise."""
        self._pass_gate(self.context, super().do_handshake)

    def read(self, len: int = 1024, buffer: WriteableBuffer | None = None) -> bytes:  # noqa: A002  # the base's name
        """Read, once the peer is verified."""
        self.do_handshake()
        return self.read(len, buffer)

    def write(self, data: ReadableBuffer) -> int:
        """Write, once the peer is verified."""
        self.do_handshake()
        return self.write(data)

    def unwrap(self) -> None:
        """Begin or end the closing of the TLS layer, once the peer is verified."""
        self.do_handshake()
        self.unwrap()


class JudgedSocket(_Judged, ssl.SSLSocket):
    """TLS over a socket, blocking or not, once its peer is verified."""

    # Attributes of the base that its published types leave out.
    _context: ssl.SSLContext
    _sslobj: ssl.SSLObject | None
    do_handshake_on_connect: bool
    suppress_ragged_eofs: bool

    _unwrapped = False

    def shutdown(self, how: int) -> None:
        """End the TLS layer, and with it this connection for reading or writing."""
        self.__class__ = GatedSocket
        ssl.SSLSocket.shutdown(self, how)

    def unwrap(self) -> socket.socket:
        """Go back to plain text."""
        plain = ssl.SSLSocket.unwrap(self)
        self._unwrapped = True
        return plain

    def sendto(self, *_args: object) -> Never:
        """Always refused: TLS has no addresses.

        Raises:
            ValueError: always.
        """
        raise ValueError("sendto has no meaning over TLS")

    def selected_alpn_protocol(self) -> str | None:
        """The protocol that both ends speak, by its plain name."""
        return self._plain_name(super().selected_alpn_protocol())


class GatedSocket(_Gate, JudgedSocket):
    """TLS over a socket whose peer is not verified yet, or that listens, or whose TLS layer is gone.

    Each method passes the gate and then calls the base's, whatever class the socket has by then.
    """

    _welcome = JudgedSocket

    def do_handshake(self, block: bool = False) -> None:  # the base's signature
        """Complete the handshake and the verdict, or raise."""
        self._pass_gate(self.context, lambda: ssl.SSLSocket.do_handshake(self, block))

    def _come_in(self) -> None:
        if self._sslobj is not None:
            self._pass_gate(self.context, self._sslobj.do_handshake)
        elif not self._unwrapped:
            raise OSError(errno.ENOTCONN, "the socket has no TLS connection")

    def connect(self, addr: _Address) -> None:
        """Connect, with the present snapshot."""
        self._renew()
        ssl.SSLSocket.connect(self, addr)

    def connect_ex(self, addr: _Address) -> int:
        """Connect, with the present snapshot."""
        self._renew()
        return ssl.SSLSocket.connect_ex(self, addr)

    def accept(self) -> tuple[ssl.SSLSocket, _RetAddress]:
        """Accept a connection, with the present snapshot."""
        connection, address = socket.socket.accept(self)
        return (
            _judging(self.context)
            .renewed()
            .wrap_socket(
                connection,
                server_side=True,
                do_handshake_on_connect=self.do_handshake_on_connect,
                suppress_ragged_eofs=self.suppress_ragged_eofs,
            ),
            address,
        )

    def _renew(self) -> None:
        if self._sslobj is None:
            self._context = _judging(self.context).renewed()

    def read(self, len: int = 1024, buffer: WriteableBuffer | None = None) -> bytes:  # noqa: A002  # the base's name
        """Read, once the peer is verified."""
        self._come_in()
        return ssl.SSLSocket.read(self, len, buffer)

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        """Read, once the peer is verified."""
        self._come_in()
        return ssl.SSLSocket.recv(self, buflen, flags)

    def recv_into(self, buffer: WriteableBuffer, nbytes: int | None = None, flags: int = 0) -> int:
        """Read, once the peer is verified."""
        self._come_in()
        return ssl.SSLSocket.recv_into(self, buffer, nbytes, flags)

    def recvfrom(self, buflen: int = 1024, flags: int = 0) -> tuple[bytes, _RetAddress]:
        """Read, once the peer is verified; TLS itself refuses it."""
        self._come_in()
        return ssl.SSLSocket.recvfrom(self, buflen, flags)

    def recvfrom_into(
        self, buffer: WriteableBuffer, nbytes: int | None = None, flags: int = 0
    ) -> tuple[int, _RetAddress]:
        """Read, once the peer is verified; TLS itself refuses it."""
        self._come_in()
        return ssl.SSLSocket.recvfrom_into(self, buffer, nbytes, flags)

    def write(self, data: ReadableBuffer) -> int:
        """Write, once the peer is verified."""
        self._come_in()
        return ssl.SSLSocket.write(self, data)

    def send(self, data: ReadableBuffer, flags: int = 0) -> int:
        """Write, once the peer is verified."""
        self._come_in()
        return ssl.SSLSocket.send(self, data, flags)

    def sendall(self, data: ReadableBuffer, flags: int = 0) -> None:
        """Write, once the peer is verified."""
        self._come_in()
        ssl.SSLSocket.sendall(self, data, flags)

    def sendfile(self, file: _SendableFile, offset: int = 0, count: int | None = None) -> int:
        """Write, once the peer is verified."""
        self._come_in()
        return ssl.SSLSocket.sendfile(self, file, offset, count)

    def unwrap(self) -> socket.socket:
        """Go back to plain text, once the peer is verified."""
        self._come_in()
        return JudgedSocket.unwrap(self)


def _judging(context: ssl.SSLContext) -> JudgingContext:
    if not isinstance(context, JudgingContext):
        raise HandshakeRefused(NotReady("the connection was given another context before its handshake"))
    return context


def _reason_of(error: ssl.SSLError) -> IstioAuthError | None:
    """Our error for a certificate that OpenSSL itself refused; None for all other errors."""
    if isinstance(error, ssl.SSLCertVerificationError):
        fault = _FAULTS.get(error.verify_code, Fault.UNTRUSTED)
        return VerificationError(fault, f"OpenSSL says: {error.verify_message}")
    if error.reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
        return VerificationError(Fault.EMPTY, "the peer presented no certificate")
    return None


class _Certificate(Protocol):
    def public_bytes(self, form: int) -> bytes: ...


class _ChainHolder(Protocol):
    def get_unverified_chain(self) -> Sequence[bytes | _Certificate | None] | None: ...


_DER = 2  # _ssl.ENCODING_DER


def _presented(connection: object) -> list[bytes]:
    """The chain that the peer presented, in DER, leaf first. Only this function knows where Python keeps it.

    The method is public from Python 3.13; before, only the private object has it. If a client presented no certificate,
    one of them returns None in the place of the leaf and the other fails, so the leaf is asked for first. A session
    that a ticket resumed has only the leaf.
    """
    if (leaf := cast("ssl.SSLObject", connection).getpeercert(binary_form=True)) is None:
        return []
    holder = connection if hasattr(connection, "get_unverified_chain") else getattr(connection, "_sslobj")  # noqa: B009  # not in the stubs
    if not (chain := cast("_ChainHolder", holder).get_unverified_chain()):
        return [leaf]
    return [entry if isinstance(entry, bytes) else entry.public_bytes(_DER) for entry in chain if entry is not None]
