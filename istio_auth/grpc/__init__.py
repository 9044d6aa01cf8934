"""gRPC with SPIFFE identities on both ends, for applications that have a server or call one (extra `grpc`).

Python's gRPC shows a handler only the leaf of a peer's chain, and its channels can not change their certificate. So a
server stands behind a door of ours, which verifies each caller in the TLS handshake, and a channel dials through a
portal of ours, which verifies the server. The servers and channels themselves stay gRPC's own, with all their options:

    async with serve_grpc(server, source, member_of(trust_domain), "0.0.0.0:8443") as door: ...
    async with grpc_channel(source, is_id(server_id), "orders.shop.example:8443") as channel: ...
"""

from istio_auth.grpc.authorizing import AuthorizingInterceptor, BlockingAuthorizingInterceptor, MethodRules
from istio_auth.grpc.blocking_channel import BlockingGrpcChannel, blocking_grpc_channel
from istio_auth.grpc.channel import GrpcChannel, grpc_channel
from istio_auth.grpc.peers import peer_chain, peer_id
from istio_auth.grpc.serving import GrpcDoor, serve_grpc

__all__ = [
    "AuthorizingInterceptor",
    "BlockingAuthorizingInterceptor",
    "BlockingGrpcChannel",
    "GrpcChannel",
    "GrpcDoor",
    "MethodRules",
    "blocking_grpc_channel",
    "grpc_channel",
    "peer_chain",
    "peer_id",
    "serve_grpc",
]
