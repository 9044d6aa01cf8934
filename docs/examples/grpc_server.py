"""A gRPC server on asyncio over mutual TLS: each method has a rule, and knows by whom it is called."""

import asyncio

import grpc

from istio_auth import FileSource, SpiffeID, TrustDomain, X509Source, is_id, member_of
from istio_auth.grpc import AuthorizingInterceptor, peer_id, serve_grpc

CLIENT = SpiffeID.parse("spiffe://cluster.local/ns/shop/sa/client")
RULES = {"/shop.Greeter/": is_id(CLIENT)}  # a method without a rule is closed to everybody


async def greet(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
    """Answer; the caller's SPIFFE ID is proven before this runs."""
    return f"{peer_id(context)} says {request.decode()}".encode()


def server() -> grpc.aio.Server:
    """A server of gRPC's own. With generated code, call `add_GreeterServicer_to_server` instead of the last lines."""
    made = grpc.aio.server(interceptors=[AuthorizingInterceptor(RULES)])
    methods = {"Greet": grpc.unary_unary_rpc_method_handler(greet)}
    made.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("shop.Greeter", methods),))
    return made


async def serve(source: X509Source, address: str = "127.0.0.1:8443") -> None:
    """Serve until cancelled; `serve_grpc` starts the server and stops it."""
    greeter = server()
    async with serve_grpc(greeter, source, member_of(TrustDomain("cluster.local")), address):
        await greeter.wait_for_termination()


if __name__ == "__main__":
    with FileSource("/etc/certs") as source:
        asyncio.run(serve(source))
