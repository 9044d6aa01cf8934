"""The TLS contexts of applications: they follow a source, and make each connection with a context of its snapshot.

OpenSSL is given the roots of all trust domains, which only lets a handshake end. The decision comes after it: from
`istio_auth.verify` with the bundle of the peer's own trust domain, and then from the authorizer. The inner context of a
snapshot is never changed, because roots can not be removed from an OpenSSL context: for a new snapshot a new inner
context is made, which replaces the old one.
Settings that libraries make on the outer context (ALPN, versions, ciphers, options, flags) are made on each inner one
too. Certificates and roots come from the source alone, and there is no way to verify less. An SVID that has ended is
never presented: the error is raised and logged on this side, where it can be mended, and not at each peer.

A TLS 1.3 client ends its handshake before the server has verified it: only when it reads the first bytes does it know
that it was admitted.
Key exchange prefers X25519MLKEM768 wherever the linked OpenSSL has it (3.5 and newer), which is OpenSSL's own default.
"""

from __future__ import annotations

import functools
import logging
import socket
import ssl
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import cast

from istio_auth.authorize import Authorizer
from istio_auth.clock import Clock
from istio_auth.errors import ConfigurationError, IstioAuthError, NotReady
from istio_auth.system_clock import SystemClock
from istio_auth.tls import alpn as mesh_alpn
from istio_auth.tls.judged import GatedObject, GatedSocket, JudgingContext
from istio_auth.tls.loading import load_roots, load_svid
from istio_auth.tls.rules import Rules
from istio_auth.x509_source import X509Context, X509Source

_LOG = logging.getLogger(__name__)

# TLS 1.2, as Istio's sidecars have it; those of TLS 1.3 are OpenSSL's own.
CIPHERS = (
    "ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384:"
    "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:AES256-GCM-SHA384:AES128-GCM-SHA256"
)
# Renegotiation would let a TLS 1.2 peer present another certificate after it was admitted.
_OPTIONS = ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
_NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME: we check the times, by our clock


def server_context(
    source: X509Source,
    authorize: Authorizer,
    *,
    require_client_certificate: bool = True,
    alpn: Sequence[str] = (),
    clock: Clock | None = None,
) -> ssl.SSLContext:
    """A context for servers, which presents the source's SVID.

    Args:
        source: holds the SVID and the bundles; asked at each handshake.
        authorize: decides on each peer whose SPIFFE ID is proven.
        require_client_certificate: False admits clients without a certificate too; one that is presented must be valid.
        alpn: protocols that the server speaks, best first.
        clock: tells when a chain must be valid; the machine's by default.

    Raises:
        ConfigurationError: what was given is no source, or no authorizer.
    """
    demanded = ssl.CERT_REQUIRED if require_client_certificate else ssl.CERT_OPTIONAL
    rules = Rules(source, authorize, clock or SystemClock(), demanded)
    return _following(ssl.PROTOCOL_TLS_SERVER, rules, alpn)


def client_context(
    source: X509Source,
    authorize: Authorizer,
    *,
    alpn: Sequence[str] = (),
    istio_alpn: bool = False,
    clock: Clock | None = None,
) -> ssl.SSLContext:
    """A context for clients, which presents the source's SVID if it holds one (see `server_context`).

    A server is verified by its SPIFFE ID: `authorize` replaces the check of the host name.

    Args:
        source: holds the SVID and the bundles; asked at each handshake.
        authorize: decides on each server whose SPIFFE ID is proven.
        alpn: protocols that the client speaks, best first.
        istio_alpn: offer each protocol, also those that a library sets, under Istio's name as well, so that a sidecar
            in PERMISSIVE mode ends the TLS itself instead of passing it on. `selected_alpn_protocol()` still returns
            plain names.
        clock: tells when a chain must be valid; the machine's by default.

    Raises:
        ConfigurationError: what was given is no source, or no authorizer.
    """
    rules = Rules(source, authorize, clock or SystemClock(), ssl.CERT_REQUIRED, istio_alpn)
    return _following(ssl.PROTOCOL_TLS_CLIENT, rules, alpn)


def _following(protocol: int, rules: Rules, alpn: Sequence[str]) -> FollowingContext:
    context = FollowingContext(protocol, rules)
    if alpn or rules.istio_alpn:
        context.set_alpn_protocols(alpn)
    return context


class FollowingContext(ssl.SSLContext):
    """An `ssl.SSLContext` that makes each connection with its source's present snapshot."""

    def __init__(self, _protocol: int, rules: Rules) -> None:
        super().__init__()
        self._rules = rules
        # Without locks, since a process may fork at any moment. Two threads may each make the same inner context.
        self._recorded: dict[str, tuple[object, ...]] = {}  # iterate over a copy, since another thread may change it
        self._made: _Made | None = None
        self._told = ""  # the reason last logged
        self.minimum_version = ssl.TLSVersion.TLSv1_2
        self.verify_mode = rules.demanded

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,  # the base's signature
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,  # noqa: ARG002  # sessions are not resumed
    ) -> ssl.SSLObject:
        """Wrap memory buffers, with the present snapshot."""
        return self.current().wrap_bio(incoming, outgoing, server_side=server_side, server_hostname=server_hostname)

    def wrap_socket(  # noqa: PLR0917  # the base's signature
        self,
        sock: socket.socket,
        server_side: bool = False,  # the base's signature
        do_handshake_on_connect: bool = True,
        suppress_ragged_eofs: bool = True,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,  # noqa: ARG002  # sessions are not resumed
    ) -> ssl.SSLSocket:
        """Wrap a socket, with the present snapshot; one that connects or accepts later takes that time's snapshot."""
        return self.current().wrap_socket(
            sock,
            server_side=server_side,
            do_handshake_on_connect=do_handshake_on_connect,
            suppress_ragged_eofs=suppress_ragged_eofs,
            server_hostname=server_hostname,
        )

    def load_cert_chain(self, *_args: object, **_kwargs: object) -> None:
        """Refused: the certificate comes from the source.

        Raises:
            ConfigurationError: always.
        """
        raise ConfigurationError("the certificate of this TLS context comes from its source and from nowhere else")

    def load_verify_locations(self, *_args: object, **_kwargs: object) -> None:
        """No effect: trust comes from the source. HTTP libraries add the roots of the web to any context."""

    def load_default_certs(self, purpose: ssl.Purpose = ssl.Purpose.SERVER_AUTH) -> None:
        """No effect (see `load_verify_locations`)."""

    def set_default_verify_paths(self) -> None:
        """No effect (see `load_verify_locations`)."""

    def set_alpn_protocols(self, alpn_protocols: Iterable[str]) -> None:
        """Speak these protocols; a context made with `istio_alpn` offers them under the mesh's names as well."""
        names = list(alpn_protocols)
        self.record("set_alpn_protocols", mesh_alpn.offered(names) if self._rules.istio_alpn else names)

    def set_ciphers(self, ciphers: str, /) -> None:
        """Use these ciphers for TLS 1.2, except those without encryption or without a certificate."""
        self.record("set_ciphers", f"{ciphers}:!eNULL:!aNULL")

    def record(self, name: str, *arguments: object) -> None:
        """Call this method of the base class, here and on each inner context that is made later."""
        kept = tuple(entry if isinstance(entry, str) else list(cast("Iterable[str]", entry)) for entry in arguments)
        getattr(ssl.SSLContext, name)(self, *kept)
        self._recorded[name] = kept

    def current(self) -> JudgingContext:
        """The inner context for a connection that begins now.

        If none can be made, it is one whose handshakes fail with the reason, because servers and event loops expect a
        TLS error from a connection and nowhere else.
        """
        try:
            return self._made_for(self._rules.snapshot(), self._settings())
        except IstioAuthError as error:
            return self._refusing(error)
        except (OSError, ValueError) as error:  # ssl's errors are among them
            return self._refusing(NotReady(f"OpenSSL can not use the source's SVID or roots: {error}"))
        except Exception as error:  # noqa: BLE001  # another's source; asyncio would drop it silently
            return self._refusing(IstioAuthError(f"asking the source failed: {error!r}"))

    def _made_for(self, snapshot: X509Context, settings: tuple[object, ...]) -> JudgingContext:
        made = self._made
        if made is None or made.snapshot is not snapshot or made.settings != settings:
            made = self._made = _Made(snapshot, settings, self._make(snapshot))
        return made.context

    def _settings(self) -> tuple[object, ...]:
        properties = (self.options, self.verify_flags, self.minimum_version, self.maximum_version)
        return (*properties, self.keylog_filename, self.sni_callback, *self._recorded.copy().items())

    def _make(self, snapshot: X509Context) -> JudgingContext:
        inner = self._bare()
        inner.verify_mode = self._rules.demanded
        inner.verify_flags |= self.verify_flags | ssl.VERIFY_X509_PARTIAL_CHAIN | _NO_CHECK_TIME
        inner.options |= self.options | _OPTIONS
        if self.minimum_version > ssl.TLSVersion.TLSv1_2 or self.minimum_version == ssl.TLSVersion.MAXIMUM_SUPPORTED:
            inner.minimum_version = self.minimum_version
        inner.maximum_version = self.maximum_version
        if self.keylog_filename:
            inner.keylog_filename = self.keylog_filename
        inner.set_ciphers(CIPHERS)
        for name, arguments in self._recorded.copy().items():
            getattr(inner, name)(*arguments)
        load_roots(inner, snapshot.bundles)
        if self._on_server:
            inner.num_tickets = 0
            inner.sni_callback = self.sni_callback
        if self._on_server or snapshot.svids:
            load_svid(inner, snapshot.svid)
        return inner

    def _refusing(self, reason: IstioAuthError) -> JudgingContext:
        level = logging.DEBUG if str(reason) == self._told else logging.WARNING
        self._told = str(reason)
        _LOG.log(level, "TLS handshakes are refused on our side: %s", reason)
        inner = self._bare()
        inner.unusable = reason
        return inner

    def _bare(self) -> JudgingContext:
        inner = JudgingContext(self.protocol)
        inner.minimum_version = ssl.TLSVersion.TLSv1_2
        inner.check_hostname = False  # peers are verified by SPIFFE ID
        inner.sslobject_class = GatedObject
        inner.sslsocket_class = GatedSocket
        inner.judge = self._rules.judge
        inner.renewed = self.current
        inner.istio_alpn = self._rules.istio_alpn
        return inner

    @property
    def _on_server(self) -> bool:
        return self.protocol == ssl.PROTOCOL_TLS_SERVER


@dataclass(frozen=True, slots=True)
class _Made:
    snapshot: X509Context
    settings: tuple[object, ...]
    context: JudgingContext


def _recording(name: str) -> Callable[..., None]:
    def setting(self: FollowingContext, *arguments: object) -> None:
        self.record(name, *arguments)

    return functools.wraps(getattr(ssl.SSLContext, name))(setting)


# Python 3.15 has the later ones.
for _name in (
    "set_ecdh_curve",
    "set_ciphersuites",
    "set_groups",
    "set_client_sigalgs",
    "set_server_sigalgs",
):
    if hasattr(ssl.SSLContext, _name):
        setattr(FollowingContext, _name, _recording(_name))
