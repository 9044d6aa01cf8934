"""A TLS client on asyncio streams: it talks to one server, which it knows by its SPIFFE ID."""

import asyncio
import contextlib

from istio_auth import FileSource, SpiffeID, X509Source, client_context, is_id, peer_id

SERVER = SpiffeID.parse("spiffe://cluster.local/ns/shop/sa/server")


async def ask(source: X509Source, host: str = "127.0.0.1", port: int = 8443) -> str:
    """Say one line, and return the answer with the name of the server."""
    context = client_context(source, is_id(SERVER))
    reader, writer = await asyncio.open_connection(host, port, ssl=context)
    try:
        writer.write(b"hello\n")
        answer = await reader.readline()  # a server that refuses us does so here, not before
        return f"{peer_id(writer)} answers {answer.decode()}"
    finally:
        writer.close()
        with contextlib.suppress(OSError):  # who refused us is gone already
            await writer.wait_closed()


async def main() -> None:
    """Ask once."""
    with FileSource("/etc/certs") as source:
        print(await ask(source))


if __name__ == "__main__":
    asyncio.run(main())
