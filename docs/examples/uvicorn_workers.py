"""uvicorn with several workers: each is a process, and opens a source of its own."""

import ssl

import uvicorn

from istio_auth import FileSource, SpiffeID, is_id, peer_id, server_context
from istio_auth.middleware.asgi import Receive, Scope, Send
from istio_auth.middleware.uvicorn import HTTPProtocol

CLIENT = SpiffeID.parse("spiffe://cluster.local/ns/shop/sa/client")


async def app(scope: Scope, _receive: Receive, send: Send) -> None:
    """Tell each caller who it is."""
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": f"{peer_id(scope)}\n".encode()})


def tls(*_settings: object) -> ssl.SSLContext:
    """The context of one worker, whose source lives as long as the worker."""
    return server_context(FileSource("/etc/certs"), is_id(CLIENT))


if __name__ == "__main__":
    uvicorn.run("uvicorn_workers:app", port=8443, workers=2, http=HTTPProtocol, ssl_context_factory=tls, lifespan="off")
