"""A urllib3 pool over mutual TLS."""

import urllib3

from istio_auth import FileSource, SpiffeID, X509Source, client_context, is_id

SERVER = SpiffeID.parse("spiffe://cluster.local/ns/shop/sa/server")


def pool(source: X509Source) -> urllib3.PoolManager:
    """A pool for one server, known by its SPIFFE ID, so urllib3 need not look at the host name."""
    return urllib3.PoolManager(ssl_context=client_context(source, is_id(SERVER)), assert_hostname=False)


if __name__ == "__main__":
    with FileSource("/etc/certs") as source, pool(source) as http:
        print(http.request("GET", "https://127.0.0.1:8443/").data.decode())
