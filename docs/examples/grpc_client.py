"""A gRPC client on asyncio over mutual TLS; its channel lasts over every rotation."""

import asyncio

from istio_auth import FileSource, SpiffeID, X509Source, is_id
from istio_auth.grpc import GrpcChannel, grpc_channel

SERVER = SpiffeID.parse("spiffe://cluster.local/ns/shop/sa/server")


async def ask(channel: GrpcChannel) -> str:
    """Call one method. With generated code: `await GreeterStub(channel).Greet(...)`."""
    answer: bytes = await channel.unary_unary("/shop.Greeter/Greet")(b"hello", timeout=30)
    return answer.decode()


async def main(source: X509Source, address: str = "127.0.0.1:8443") -> None:
    """Ask once; an error of a call says why the server was not reached."""
    async with grpc_channel(source, is_id(SERVER), address) as channel:
        print(await ask(channel))


if __name__ == "__main__":
    with FileSource("/etc/certs") as source:
        asyncio.run(main(source))
