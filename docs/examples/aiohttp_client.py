"""An aiohttp client over mutual TLS; one session lasts over every rotation."""

import asyncio

import aiohttp

from istio_auth import FileSource, SpiffeID, X509Source, client_context, is_id

SERVER = SpiffeID.parse("spiffe://cluster.local/ns/shop/sa/server")


def session(source: X509Source) -> aiohttp.ClientSession:
    """A session whose connections go to one server, known by its SPIFFE ID and not by its host name."""
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=client_context(source, is_id(SERVER))))


async def main() -> None:
    """Ask once."""
    with FileSource("/etc/certs") as source:
        async with session(source) as http, http.get("https://127.0.0.1:8443/") as response:
            print(await response.text())


if __name__ == "__main__":
    asyncio.run(main())
