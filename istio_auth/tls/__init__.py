"""TLS contexts that follow a source and verify every peer by SPIFFE's rules (X509-SVID 5, Workload API 4.6).

Use them like any `ssl.SSLContext`, with asyncio, http.server, aiohttp and everything else that takes one.
"""

from istio_auth.peer import PeerRefused, peer_chain, peer_id
from istio_auth.tls.contexts import client_context, server_context

__all__ = ["PeerRefused", "client_context", "peer_chain", "peer_id", "server_context"]
