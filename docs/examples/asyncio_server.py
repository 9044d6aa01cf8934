"""A TLS server on asyncio streams: it lets one client in, and knows it by its SPIFFE ID."""

import asyncio

from istio_auth import FileSource, SpiffeID, X509Source, is_id, peer_id, server_context

CLIENT = SpiffeID.parse("spiffe://cluster.local/ns/shop/sa/client")


async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer one line; the client's SPIFFE ID is proven before this runs."""
    try:
        line = await reader.readline()
        writer.write(f"{peer_id(writer)} says {line.decode()}".encode())
        await writer.drain()
    finally:
        writer.close()


async def listen(source: X509Source, host: str = "127.0.0.1", port: int = 8443) -> asyncio.Server:
    """Begin to listen."""
    return await asyncio.start_server(greet, host, port, ssl=server_context(source, is_id(CLIENT)))


async def main() -> None:
    """Serve until interrupted."""
    with FileSource("/etc/certs") as source:
        async with await listen(source) as server:
            await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
