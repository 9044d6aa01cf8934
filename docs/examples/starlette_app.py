"""Starlette under uvicorn, behind a gateway; FastAPI is the same."""

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from istio_auth import FileSource, SpiffeID, TrustDomain, X509Source, is_id, member_of, peer_id, server_context
from istio_auth.middleware import IdentityMiddleware
from istio_auth.middleware.uvicorn import HTTPProtocol

GATEWAY = SpiffeID.parse("spiffe://cluster.local/ns/edge/sa/gateway")


async def hello(request: Request) -> PlainTextResponse:
    """Tell each caller who it is: the gateway's client, not the gateway."""
    return PlainTextResponse(f"{peer_id(request)}\n")


app = Starlette(routes=[Route("/", hello)])
app.add_middleware(IdentityMiddleware, authorize=member_of(TrustDomain("cluster.local")), trusted_proxies=[GATEWAY])


def server(source: X509Source, host: str = "127.0.0.1", port: int = 8443) -> uvicorn.Server:
    """A server that only the gateway can connect to."""
    context = server_context(source, is_id(GATEWAY))
    config = uvicorn.Config(app, host, port, http=HTTPProtocol, ssl_context_factory=lambda _config, _default: context)
    return uvicorn.Server(config)


if __name__ == "__main__":
    with FileSource("/etc/certs") as source:
        server(source).run()
