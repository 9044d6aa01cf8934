"""Who is at the other end of a verified TLS connection, and the errors of a refused handshake.

TLS contexts (`istio_auth.tls`) put a `VerifiedPeer` on each connection that they make; everybody else reads it here,
without depending on them. The connection of a request is found by the attributes that its library documents, so none
of these libraries is imported. ASGI knows no connections: whoever serves or wraps an ASGI application puts the
`VerifiedPeer` into its scope, at `scope["extensions"][ASGI_EXTENSION]`.

A refusal is an `ssl` error, so that every event loop and library treats it as a failed handshake. It carries our own
error with the reason.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, Self, runtime_checkable

from cryptography import x509

from istio_auth.errors import IstioAuthError, NotAuthenticated
from istio_auth.spiffe_id import SpiffeID


@dataclass(frozen=True, slots=True)
class VerifiedPeer:
    """Who is at the other end of a connection.

    Args:
        spiffe_id: the identity that was proven and found welcome; None if the peer presented no certificate.
        chain: what proved it, leaf first; empty if the peer presented no certificate.
    """

    spiffe_id: SpiffeID | None
    chain: tuple[x509.Certificate, ...]


class HandshakeRefused(ssl.SSLError):
    """No connection was made, and the reason is ours and not OpenSSL's.

    Args:
        reason_error: the reason; its message is for our own log.
    """

    def __init__(self, reason_error: IstioAuthError) -> None:
        super().__init__(ssl.SSL_ERROR_SSL, str(reason_error))
        self.reason_error = reason_error
        # Libraries read these two of every SSLError.
        self.library = "ISTIO_AUTH"
        self.reason = reason_error.code.name

    def __reduce__(self) -> tuple[type[Self], tuple[IstioAuthError]]:
        return type(self), (self.reason_error,)  # errors are copied, and cross to other processes


class PeerRefused(HandshakeRefused, ssl.SSLCertVerificationError):
    """The peer was refused: `reason_error` is a `VerificationError` or `NotAuthorized`.

    It is another `IstioAuthError` if the peer could not be judged: the source serves nothing, or the authorizer failed.
    """

    def __init__(self, reason_error: IstioAuthError) -> None:
        super().__init__(reason_error)
        self.verify_code = 1  # X509_V_ERR_UNSPECIFIED: the reason is not one of OpenSSL's
        self.verify_message = str(reason_error)


@runtime_checkable
class JudgedConnection(Protocol):
    """A TLS connection whose handshake ends in a verdict."""

    def verified_peer(self) -> VerifiedPeer:
        """The peer, once the handshake is over.

        Raises:
            NotAuthenticated: the handshake is not over, or the peer was refused.
        """
        ...


class Transport(Protocol):
    """What asyncio's transports and stream writers, aiohttp's requests and httpx's network streams have in common."""

    def get_extra_info(self, name: str, /) -> object:
        """Something about the connection, by name."""
        ...


class OverTransport(Protocol):
    """What came in over a transport: asyncio's protocols, aiohttp's requests."""

    @property
    def transport(self) -> object:
        """None once the connection is closed."""
        ...


class OverConnection(Protocol):
    """What came in over a connection: the handlers of `http.server`, the stream handlers of `socketserver`."""

    @property
    def connection(self) -> object:
        """The socket, or something over it."""
        ...


class OverRequest(Protocol):
    """A handler of `socketserver`, for which a connection is a request."""

    @property
    def request(self) -> object:
        """The socket."""
        ...


class OverSocket(Protocol):
    """A connection of `http.client`, and of those that build on it."""

    @property
    def sock(self) -> object:
        """None before the connection is made."""
        ...


class WithScope(Protocol):
    """A request of an ASGI framework."""

    @property
    def scope(self) -> Mapping[str, object]:
        """What the server says of it."""
        ...


Scope = Mapping[str, object]
Connection = (
    JudgedConnection
    | ssl.SSLSocket
    | ssl.SSLObject
    | Transport
    | OverTransport
    | OverConnection
    | OverRequest
    | OverSocket
    | WithScope
    | Scope
)

ASGI_EXTENSION = "istio_auth.peer"

_ATTRIBUTES = ("transport", "connection", "sock", "request", "scope")
_DEPTH = 4  # a request, its connection, the transport, the TLS object


def verified_peer(connection: Connection) -> VerifiedPeer:
    """The peer of a connection made by one of our contexts.

    Args:
        connection: an SSL socket, an SSL object, an asyncio transport or stream writer over one; or what came in over
            such a connection: an aiohttp request, a handler of `http.server` or `socketserver`, a connection of
            `http.client`, the network stream of an httpx response while it is read, an ASGI scope or request.

    Raises:
        NotAuthenticated: the connection has no TLS, TLS of another context, or is closed; or its handshake is not over,
            or refused the peer.
    """
    found: object = connection
    for _ in range(_DEPTH):
        if isinstance(found, VerifiedPeer):
            return found
        if isinstance(found, JudgedConnection):
            return found.verified_peer()
        if (found := _below(found)) is None:
            break
    raise NotAuthenticated(
        f"this {type(connection).__name__} has no TLS that verifies SPIFFE peers, or its connection is closed"
    )


def peer_id(connection: Connection) -> SpiffeID:
    """The SPIFFE ID of a connection's peer (see `verified_peer`).

    Raises:
        NotAuthenticated: as in `verified_peer`, or the peer presented no certificate.
    """
    if (spiffe_id := verified_peer(connection).spiffe_id) is None:
        raise NotAuthenticated("the peer presented no certificate")
    return spiffe_id


def peer_chain(connection: Connection) -> tuple[x509.Certificate, ...]:
    """The chain that proved the peer, leaf first; empty if it presented no certificate (see `verified_peer`)."""
    return verified_peer(connection).chain


def _below(found: object) -> object:
    """The object below this one, one step nearer to the TLS; None if there is none that we know.

    Some requests are mappings as well, so attributes are tried before the keys of an ASGI scope.
    """
    if isinstance(found, ssl.SSLSocket | ssl.SSLObject):
        return None  # TLS of another context
    ask: Callable[[str], object] | None = getattr(found, "get_extra_info", None)
    if callable(ask) and (tls := ask("ssl_object")) is not None:
        return getattr(tls, "owner", tls)  # httpx's blocking stream gives the inner object of an SSL socket
    for name in _ATTRIBUTES:
        if (below := getattr(found, name, None)) is not None:
            return below
    if isinstance(found, Mapping) and isinstance(extensions := found.get("extensions"), Mapping):
        return extensions.get(ASGI_EXTENSION)
    return None
