"""TLS contexts that follow a source and judge every peer by SPIFFE rules."""

from __future__ import annotations

import ssl
from collections.abc import Sequence

from istio_auth.authorize import Authorizer
from istio_auth.clock import Clock
from istio_auth.errors import NotReady
from istio_auth.peer import peer_chain, peer_id
from istio_auth.x509_source import X509Source

__all__ = ["client_context", "peer_chain", "peer_id", "server_context"]


def server_context(
    source: X509Source,
    authorize: Authorizer,
    *,
    require_client_certificate: bool = True,
    alpn: Sequence[str] = (),
    clock: Clock | None = None,
) -> ssl.SSLContext:
    """A context for servers that presents the source's SVID."""
    raise NotReady("in work")


def client_context(
    source: X509Source, authorize: Authorizer, *, alpn: Sequence[str] = (), clock: Clock | None = None
) -> ssl.SSLContext:
    """A context for clients."""
    raise NotReady("in work")
