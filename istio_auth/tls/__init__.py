"""TLS contexts that follow a source and judge every peer by SPIFFE's rules (X509-SVID 5, Workload API 4.6).

They are plain `ssl.SSLContext`s to asyncio, http.server, aiohttp and whatever else takes one.
"""

from istio_auth.peer import PeerRefused, peer_chain, peer_id
from istio_auth.tls.contexts import client_context, server_context

__all__ = ["PeerRefused", "client_context", "peer_chain", "peer_id", "server_context"]
