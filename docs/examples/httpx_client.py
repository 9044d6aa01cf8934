"""An httpx client over mutual TLS: the context takes the place of the list of web roots."""

import httpx

from istio_auth import FileSource, SpiffeID, X509Source, client_context, is_id, peer_id

SERVER = SpiffeID.parse("spiffe://cluster.local/ns/shop/sa/server")


def client(source: X509Source) -> httpx.Client:
    """A client for one server, known by its SPIFFE ID and not by its host name; it lasts over every rotation."""
    return httpx.Client(verify=client_context(source, is_id(SERVER)), timeout=30)


def ask(http: httpx.Client, url: str = "https://127.0.0.1:8443/") -> str:
    """Ask once, and return the answer with the name of the server."""
    with http.stream("GET", url) as response:
        server = peer_id(response.extensions["network_stream"])
        return f"{server} answers {response.read().decode()}"


if __name__ == "__main__":
    with FileSource("/etc/certs") as source, client(source) as http:
        print(ask(http))
