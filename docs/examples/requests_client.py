"""A requests session over mutual TLS: requests takes no context, but an adapter that has one (2.32.3 and newer)."""

import requests
import urllib3
from requests.adapters import HTTPAdapter

from istio_auth import FileSource, SpiffeID, X509Source, client_context, is_id

SERVER = SpiffeID.parse("spiffe://cluster.local/ns/shop/sa/server")


class SpiffeAdapter(HTTPAdapter):
    """Connects by the rules of one context, which follows its source.

    `assert_hostname=False` turns off urllib3's look at the host name: the context has checked the SPIFFE ID, which is
    more. `verify` of requests changes nothing, and `cert` is refused.
    """

    def __init__(self, source: X509Source, server: SpiffeID) -> None:
        self._tls = {"ssl_context": client_context(source, is_id(server)), "assert_hostname": False}
        super().__init__()

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **settings: object) -> None:
        """Give the context to urllib3."""
        super().init_poolmanager(connections, maxsize, block, **settings | self._tls)

    def proxy_manager_for(self, proxy: str, **settings: object) -> urllib3.ProxyManager:
        """Give it to urllib3 for what goes through a proxy as well, which the environment may name."""
        made: urllib3.ProxyManager = super().proxy_manager_for(proxy, **settings | self._tls)
        return made


def session(source: X509Source) -> requests.Session:
    """A session for one server, known by its SPIFFE ID and not by its host name; it lasts over every rotation."""
    made = requests.Session()
    made.mount("https://", SpiffeAdapter(source, SERVER))
    return made


if __name__ == "__main__":
    with FileSource("/etc/certs") as source, session(source) as http:
        print(http.get("https://127.0.0.1:8443/", timeout=30).text)
