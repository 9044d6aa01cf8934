"""Dials a TLS server to see which certificates it presents, and whether it accepts us.

No data is sent and nothing is trusted here: the handshake is made without checking the server's certificate, because
people want to see above all a certificate that would be refused. The verdict is given in `ca.cli.verdict`.
"""

from __future__ import annotations

import socket
import ssl
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

from cryptography import x509

from istio_auth.errors import InvalidPEM, NotReady
from istio_auth.host_port import HostPort
from istio_auth.pem import read_der_certificate
from istio_auth.svid import X509SVID
from istio_auth.tls.loading import load_svid

_PROTOCOLS = ("h2", "http/1.1")
# How many seconds a server has to refuse our certificate, which it does after the handshake (RFC 8446 4.4.2.4). It has
# more if the handshake took long, for then it is far away or slow.
_LISTEN_FOR = 0.5
_HANDSHAKES_LONG = 10
_NOT_TLS = {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL", "RECORD_LAYER_FAILURE"}
_NO_CERTIFICATE = {"TLSV13_ALERT_CERTIFICATE_REQUIRED", "PEER_DID_NOT_RETURN_A_CERTIFICATE"}


@dataclass(frozen=True, slots=True)
class Seen:
    """What a server showed.

    Args:
        chain: the certificates it presented, in its order.
        version: the TLS version, empty if the handshake did not end.
        cipher: the cipher suite.
        protocol: the application protocol it chose, if any.
        refusal: why the handshake failed or the server closed, in words; empty if all went well.
    """

    chain: tuple[x509.Certificate, ...]
    version: str = ""
    cipher: str = ""
    protocol: str = ""
    refusal: str = ""


def look(address: HostPort, *, svid: X509SVID | None, server_name: str, timeout: timedelta) -> Seen:
    """Dial a server and look at it.

    Raises:
        NotReady: it was not reached, or said nothing in time.
    """
    seconds = timeout.total_seconds()
    try:
        plain = socket.create_connection((address.host or "localhost", address.port), timeout=seconds)
    except OSError as error:
        raise NotReady(
            f"{address} was not reached: {error.strerror or error}: is it running, and the address right?"
        ) from error
    with (
        plain,
        _context(svid).wrap_socket(
            plain, server_hostname=server_name or address.host, do_handshake_on_connect=False
        ) as connection,
    ):
        began = time.monotonic()
        try:
            connection.do_handshake()
        except TimeoutError as error:
            raise NotReady(f"{address} took the connection, and no TLS answer came in {seconds:g} seconds") from error
        except (ssl.SSLError, OSError) as error:
            return Seen(_presented(connection), refusal=_in_words(error))
        took = time.monotonic() - began
        cipher = connection.cipher()
        return Seen(
            _presented(connection),
            connection.version() or "",
            cipher[0] if cipher else "",
            connection.selected_alpn_protocol() or "",
            _objection(connection, max(_LISTEN_FOR, min(_HANDSHAKES_LONG * took, seconds))),
        )


def _context(svid: X509SVID | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # see the module's rule
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(list(_PROTOCOLS))
    if svid is not None:
        load_svid(context, svid)
    return context


def _objection(connection: ssl.SSLSocket, listen_for: float) -> str:
    """What the server says right after the handshake: in TLS 1.3 it judges our certificate only then."""
    connection.settimeout(listen_for)
    try:
        if connection.recv(1) == b"":
            return "the server closed the connection right after the handshake"
    except TimeoutError:
        return ""
    except (ssl.SSLError, OSError) as error:
        return _in_words(error)
    return ""


def _presented(connection: ssl.SSLSocket) -> tuple[x509.Certificate, ...]:
    """The chain as the server sent it, up to the first certificate that can not be read."""
    chain: list[x509.Certificate] = []
    with suppress(InvalidPEM):
        for der in _presented_der(connection):
            chain.append(read_der_certificate(der))  # noqa: PERF401  # what was read before a bad one counts
    return tuple(chain)


def _presented_der(connection: ssl.SSLSocket) -> list[bytes]:
    if sys.version_info >= (3, 13):
        return connection.get_unverified_chain()
    inner = getattr(connection, "_sslobj", None)  # the same method, not yet public
    found = None if inner is None else inner.get_unverified_chain()
    return [ssl.PEM_cert_to_DER_cert(certificate.public_bytes()) for certificate in found or ()]


def _in_words(error: OSError) -> str:
    """Why a handshake failed, for people."""
    reason = str(getattr(error, "reason", "") or "")
    if reason in _NOT_TLS:
        return "the server answers, but not in TLS: is it a plaintext port?"
    if reason in _NO_CERTIFICATE:
        return "the server demands a client certificate: show one with --svid FOLDER"
    if "ALERT" in reason:
        return f"the server refused us with the TLS alert {reason.lower().replace('_', ' ')}"
    if isinstance(error, ConnectionResetError | BrokenPipeError | ssl.SSLEOFError):
        return "the server closed the connection in the middle of the handshake"
    return f"the handshake failed: {reason.lower().replace('_', ' ') or error}"
