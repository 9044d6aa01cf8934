"""A gRPC client without an event loop, over mutual TLS; its channel lasts over every rotation."""

from istio_auth import FileSource, SpiffeID, X509Source, is_id
from istio_auth.grpc import BlockingGrpcChannel, blocking_grpc_channel

SERVER = SpiffeID.parse("spiffe://cluster.local/ns/shop/sa/server")


def ask(channel: BlockingGrpcChannel) -> str:
    """Call one method. With generated code: `GreeterStub(channel).Greet(...)`."""
    answer: bytes = channel.unary_unary("/shop.Greeter/Greet")(b"hello", timeout=30)
    return answer.decode()


def main(source: X509Source, address: str = "127.0.0.1:8443") -> None:
    """Ask once; an error of a call says why the server was not reached."""
    with blocking_grpc_channel(source, is_id(SERVER), address) as channel:
        print(ask(channel))


if __name__ == "__main__":
    with FileSource("/etc/certs") as source:
        main(source)
