"""Through which of our sockets a caller came: `socket:<name>`. Who may reach a socket is up to its mode and folder."""

from __future__ import annotations

from istio_auth.door import UnixCaller
from istio_auth.registration import Selector


class SocketAttestor:
    """A `WorkloadAttestor` for the socket's name."""

    async def attest(self, peer: UnixCaller) -> frozenset[Selector]:
        """The socket's name."""
        return frozenset({Selector("socket", peer.socket)})
