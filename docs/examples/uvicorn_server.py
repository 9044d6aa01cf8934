"""An ASGI application under uvicorn (0.47 and newer) that knows its callers."""

import uvicorn

from istio_auth import FileSource, SpiffeID, X509Source, is_id, peer_id, server_context
from istio_auth.middleware.asgi import Receive, Scope, Send
from istio_auth.middleware.uvicorn import HTTPProtocol

CLIENT = SpiffeID.parse("spiffe://cluster.local/ns/shop/sa/client")


async def app(scope: Scope, _receive: Receive, send: Send) -> None:
    """Tell each caller who it is; frameworks find it the same way: `peer_id(request)`."""
    if scope["type"] != "http":
        return
    body = f"{peer_id(scope)}\n".encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": body})


def server(source: X509Source, host: str = "127.0.0.1", port: int = 8443) -> uvicorn.Server:
    """A server: the factory gives it our context, the protocol puts the connection on the scope."""
    context = server_context(source, is_id(CLIENT))
    config = uvicorn.Config(
        app, host, port, http=HTTPProtocol, ssl_context_factory=lambda _config, _default: context, lifespan="off"
    )
    return uvicorn.Server(config)


if __name__ == "__main__":
    with FileSource("/etc/certs") as source:
        server(source).run()
