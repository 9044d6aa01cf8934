"""What a verified TLS handshake leaves behind, and how a refused one is told.

TLS contexts (`istio_auth.tls`) put a `VerifiedPeer` on the connection they made; everybody else reads it here, without
depending on them. A refusal is an `ssl` error, so that every loop and library treats it as a failed handshake; it
carries the reason in our own words.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

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
    """No connection was made, for a reason of ours.

    Args:
        reason_error: the reason; its message is for our own log.
    """

    def __init__(self, reason_error: IstioAuthError) -> None:
        super().__init__(ssl.SSL_ERROR_SSL, str(reason_error))
        self.reason_error = reason_error
        # Libraries read these two of every SSLError.
        self.library = "ISTIO_AUTH"
        self.reason = reason_error.code.name


class PeerRefused(HandshakeRefused, ssl.SSLCertVerificationError):
    """The peer's certificate was refused: a `VerificationError`, or `NotAuthorized`, is in `reason_error`."""

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
    """What asyncio's transports and stream writers have in common."""

    def get_extra_info(self, name: str, default: object = None) -> object:
        """Something about the connection, by name."""
        ...


Connection = JudgedConnection | ssl.SSLSocket | ssl.SSLObject | Transport


def verified_peer(connection: Connection) -> VerifiedPeer:
    """The peer of a connection made by one of our contexts.

    Args:
        connection: an SSL socket, an SSL object, or an asyncio transport or stream writer over one.

    Raises:
        NotAuthenticated: the connection has no TLS, another's TLS, or its handshake is not over.
    """
    found: object = connection
    if not isinstance(found, ssl.SSLSocket | ssl.SSLObject | JudgedConnection):
        found = connection.get_extra_info("ssl_object")  # type: ignore[union-attr]  # the last kind of Connection
    if not isinstance(found, JudgedConnection):
        raise NotAuthenticated("the connection has no TLS that verifies SPIFFE peers")
    return found.verified_peer()


def peer_id(connection: Connection) -> SpiffeID:
    """The SPIFFE ID of a connection's peer (see `verified_peer`).

    Raises:
        NotAuthenticated: there is none: no handshake, or a peer without a certificate.
    """
    if (spiffe_id := verified_peer(connection).spiffe_id) is None:
        raise NotAuthenticated("the peer presented no certificate")
    return spiffe_id


def peer_chain(connection: Connection) -> tuple[x509.Certificate, ...]:
    """The chain that proved the peer, leaf first; empty if it presented no certificate (see `verified_peer`)."""
    return verified_peer(connection).chain
