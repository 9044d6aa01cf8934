"""The contexts that people hold: they follow a source, and hand each connection to the context of the moment.

OpenSSL sees the union of all trusted roots, which only lets a handshake end; the verdict comes after it, from
`istio_auth.verify` with the bundle of the peer's own trust domain, then from the authorizer. A context in use is never
changed, because trust stores only grow: a new snapshot makes a new inner context, which replaces the old one whole.
Settings that libraries make on the outer context (ALPN, versions, ciphers, options, flags) are made again on each inner
one; certificates and roots come from the source alone, and there is no way to verify less. An SVID that has ended is
presented to nobody: the reason is told here, where it can be mended, and not by each peer in its own words.

A TLS 1.3 client is done before the server has judged it: only the first bytes it reads show that it was welcome.
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
# Renegotiation would let a TLS 1.2 peer show another certificate after the verdict.
_OPTIONS = ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
_NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME: times are judged by our clock, with our words


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
        require_client_certificate: False lets clients without a certificate in; one that is presented must be valid.
        alpn: protocols that the server speaks, best first.
        clock: tells when a chain must be valid; the machine's by default.
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

    Servers are known by SPIFFE ID, so `authorize` takes the place of the check of the host name.

    Args:
        source: holds the SVID and the bundles; asked at each handshake.
        authorize: decides on each server whose SPIFFE ID is proven.
        alpn: protocols that the client speaks, best first.
        istio_alpn: offer each protocol, whoever sets it, by Istio's name as well, so that a sidecar in PERMISSIVE mode
            takes part in the TLS instead of passing it on. `selected_alpn_protocol()` tells the plain names as ever.
        clock: tells when a chain must be valid; the machine's by default.
    """
    rules = Rules(source, authorize, clock or SystemClock(), ssl.CERT_REQUIRED, istio_alpn)
    return _following(ssl.PROTOCOL_TLS_CLIENT, rules, alpn)


def _following(protocol: int, rules: Rules, alpn: Sequence[str]) -> FollowingContext:
    context = FollowingContext(protocol, rules)
    if alpn or rules.istio_alpn:
        context.set_alpn_protocols(alpn)
    return context


class FollowingContext(ssl.SSLContext):
    """An `ssl.SSLContext` that makes each connection under its source's present snapshot."""

    def __init__(self, _protocol: int, rules: Rules) -> None:
        super().__init__()
        self._rules = rules
        # No locks: a process may fork at any moment. Two threads may make the same inner context twice.
        self._recorded: dict[str, tuple[object, ...]] = {}  # read as a copy, since others may be changing it
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
        """Wrap memory, under the present snapshot."""
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
        """Wrap a socket, under the present snapshot; one that listens or connects later, under that of then."""
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
        """Without effect: trust comes from the source. HTTP libraries add a list of web roots to any context."""

    def load_default_certs(self, purpose: ssl.Purpose = ssl.Purpose.SERVER_AUTH) -> None:
        """Without effect (see `load_verify_locations`)."""

    def set_default_verify_paths(self) -> None:
        """Without effect (see `load_verify_locations`)."""

    def set_alpn_protocols(self, alpn_protocols: Iterable[str]) -> None:
        """Speak these protocols; towards a mesh by its names as well, if the context was made for that."""
        names = list(alpn_protocols)
        self.record("set_alpn_protocols", mesh_alpn.offered(names) if self._rules.istio_alpn else names)

    def set_ciphers(self, ciphers: str, /) -> None:
        """Take these for TLS 1.2, but none without encryption, and none without a certificate."""
        self.record("set_ciphers", f"{ciphers}:!eNULL:!aNULL")

    def record(self, name: str, *arguments: object) -> None:
        """Call a setting of the base, here and on each inner context to come."""
        kept = tuple(entry if isinstance(entry, str) else list(cast("Iterable[str]", entry)) for entry in arguments)
        getattr(ssl.SSLContext, name)(self, *kept)
        self._recorded[name] = kept

    def current(self) -> JudgingContext:
        """The inner context for a connection that begins now.

        If there is none to be had, one whose handshakes are refused with the reason: a connection is the only place
        where every server and loop expects a TLS error.
        """
        try:
            return self._made_for(self._rules.snapshot(), self._settings())
        except IstioAuthError as error:
            return self._refusing(error)
        except (OSError, ValueError) as error:  # ssl's errors are among them
            return self._refusing(NotReady(f"OpenSSL can not use the source's SVID or roots: {error}"))
        except Exception as error:  # noqa: BLE001  # somebody else's source: asyncio would drop it without a word
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
        inner.check_hostname = False  # peers are known by SPIFFE ID
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
