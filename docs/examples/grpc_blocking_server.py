"""A gRPC server with threads over mutual TLS: each method has a rule, and knows by whom it is called."""

from concurrent.futures import ThreadPoolExecutor

import grpc

from istio_auth import FileSource, SpiffeID, TrustDomain, X509Source, is_id, member_of
from istio_auth.grpc import BlockingAuthorizingInterceptor, peer_id, serve_grpc

CLIENT = SpiffeID.parse("spiffe://cluster.local/ns/shop/sa/client")
RULES = {"/shop.Greeter/": is_id(CLIENT)}  # a method without a rule is closed to everybody


def greet(request: bytes, context: grpc.ServicerContext) -> bytes:
    """Answer; the caller's SPIFFE ID is proven before this runs."""
    return f"{peer_id(context)} says {request.decode()}".encode()


def server() -> grpc.Server:
    """A server of gRPC's own. With generated code, call `add_GreeterServicer_to_server` instead of the last lines."""
    made = grpc.server(ThreadPoolExecutor(10), interceptors=[BlockingAuthorizingInterceptor(RULES)])
    methods = {"Greet": grpc.unary_unary_rpc_method_handler(greet)}
    made.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("shop.Greeter", methods),))
    return made


def serve(source: X509Source, address: str = "127.0.0.1:8443") -> None:
    """Serve until interrupted; `serve_grpc` starts the server and stops it."""
    greeter = server()
    with serve_grpc(greeter, source, member_of(TrustDomain("cluster.local")), address):
        greeter.wait_for_termination()


if __name__ == "__main__":
    with FileSource("/etc/certs") as source:
        serve(source)
