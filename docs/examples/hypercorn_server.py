"""An ASGI application under hypercorn: only welcome clients get in, but hypercorn does not tell it who they are."""

import asyncio
import ssl

from hypercorn.asyncio import serve
from hypercorn.config import Config
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, Scope

from istio_auth import FileSource, SpiffeID, X509Source, is_id, server_context

CLIENT = SpiffeID.parse("spiffe://cluster.local/ns/shop/sa/client")


class SpiffeConfig(Config):
    """A configuration whose TLS follows a source."""

    def __init__(self, source: X509Source) -> None:
        super().__init__()
        self._context = server_context(source, is_id(CLIENT), alpn=("h2", "http/1.1"))

    @property
    def ssl_enabled(self) -> bool:
        """Without files, too."""
        return True

    def create_ssl_context(self) -> ssl.SSLContext:
        """The context that hypercorn would else make of files."""
        return self._context


async def app(scope: Scope, _receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
    """Answer; whoever is not welcome does not get here."""
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"welcome\n", "more_body": False})


if __name__ == "__main__":
    with FileSource("/etc/certs") as source:
        config = SpiffeConfig(source)
        config.bind = ["127.0.0.1:8443"]
        asyncio.run(serve(app, config))
