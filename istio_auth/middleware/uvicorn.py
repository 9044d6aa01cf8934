"""uvicorn's HTTP protocol, extended to put the TLS connection on the scope, which uvicorn itself does not do.

Give it to uvicorn as `http=HTTPProtocol`, together with a TLS context of ours; `peer_id` then finds the peer of each
HTTP request and WebSocket. Of uvicorn's internals it uses only a protocol's attributes `app` and `ws_protocol_class`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from istio_auth.middleware.asgi import Application, Receive, Scope, Send, extensions_of
from istio_auth.peer import ASGI_EXTENSION, JudgedConnection


class _ServesApplication(Protocol):
    app: Application


class ConnectionOnScope(asyncio.Protocol):
    """A base before one of uvicorn's HTTP protocols, for requests and for the WebSockets that they become."""

    app: Application
    ws_protocol_class: Callable[..., _ServesApplication] | None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin; the TLS handshake is over by now."""
        super().connection_made(transport)
        connection = transport.get_extra_info("ssl_object")
        if isinstance(connection, JudgedConnection):
            self.app = on_connection(self.app, connection)
            if self.ws_protocol_class is not None:
                self.ws_protocol_class = self._websocket(self.ws_protocol_class)

    def _websocket(self, make: Callable[..., _ServesApplication]) -> Callable[..., _ServesApplication]:
        def made(**settings: object) -> _ServesApplication:
            protocol = make(**settings)
            protocol.app = self.app
            return protocol

        return made


class HTTPProtocol(ConnectionOnScope, AutoHTTPProtocol):  # type: ignore[misc, valid-type]  # whichever is installed
    """One connection to uvicorn."""


def on_connection(app: Application, connection: JudgedConnection) -> Application:
    """The application, called with this connection on the scope of each request."""

    async def told(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "extensions": {**extensions_of(scope), ASGI_EXTENSION: connection}}, receive, send)

    return told
