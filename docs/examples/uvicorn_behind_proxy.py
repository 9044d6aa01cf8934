"""An ASGI application behind a gateway that it trusts to say whom it serves."""

import uvicorn

from istio_auth import FileSource, SpiffeID, TrustDomain, X509Source, is_id, member_of, peer_id, server_context
from istio_auth.middleware import IdentityMiddleware
from istio_auth.middleware.asgi import Receive, Scope, Send
from istio_auth.middleware.uvicorn import HTTPProtocol

GATEWAY = SpiffeID.parse("spiffe://cluster.local/ns/edge/sa/gateway")


async def hello(scope: Scope, _receive: Receive, send: Send) -> None:
    """Tell each caller who it is: the gateway's client, not the gateway."""
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": f"{peer_id(scope)}\n".encode()})


app = IdentityMiddleware(hello, authorize=member_of(TrustDomain("cluster.local")), trusted_proxies=[GATEWAY])


def server(source: X509Source, host: str = "127.0.0.1", port: int = 8443) -> uvicorn.Server:
    """A server that only the gateway can connect to."""
    context = server_context(source, is_id(GATEWAY))
    config = uvicorn.Config(
        app, host, port, http=HTTPProtocol, ssl_context_factory=lambda _config, _default: context, lifespan="off"
    )
    return uvicorn.Server(config)


if __name__ == "__main__":
    with FileSource("/etc/certs") as source:
        server(source).run()
