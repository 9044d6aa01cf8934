"""An asynchronous httpx client over mutual TLS: the context takes the place of the list of web roots."""

import asyncio

import httpx

from istio_auth import FileSource, SpiffeID, X509Source, client_context, is_id, peer_id

SERVER = SpiffeID.parse("spiffe://cluster.local/ns/shop/sa/server")


def client(source: X509Source) -> httpx.AsyncClient:
    """A client for one server, known by its SPIFFE ID and not by its host name; it lasts over every rotation."""
    return httpx.AsyncClient(verify=client_context(source, is_id(SERVER)), timeout=30)


async def ask(http: httpx.AsyncClient, url: str = "https://127.0.0.1:8443/") -> str:
    """Ask once, and return the answer with the name of the server."""
    async with http.stream("GET", url) as response:
        server = peer_id(response.extensions["network_stream"])
        return f"{server} answers {(await response.aread()).decode()}"


async def main() -> None:
    """Ask once."""
    with FileSource("/etc/certs") as source:
        async with client(source) as http:
            print(await ask(http))


if __name__ == "__main__":
    asyncio.run(main())
