"""The standard library's socketserver over mutual TLS."""

from socketserver import StreamRequestHandler, ThreadingTCPServer

from istio_auth import FileSource, SpiffeID, X509Source, is_id, peer_id, server_context

CLIENT = SpiffeID.parse("spiffe://cluster.local/ns/shop/sa/client")


class Handler(StreamRequestHandler):
    """Answers one line of one client."""

    timeout = 30  # seconds; for the handshake as well

    def handle(self) -> None:
        """Answer; the first read completes the handshake, and raises PeerRefused for a stranger."""
        line = self.rfile.readline()
        self.wfile.write(f"{peer_id(self)} says {line.decode()}".encode())


class Server(ThreadingTCPServer):
    """One thread for each client."""

    allow_reuse_address = True
    daemon_threads = True


def server(source: X509Source, host: str = "127.0.0.1", port: int = 8443) -> Server:
    """A server that listens; without `do_handshake_on_connect` a slow client holds up its own thread alone."""
    tcp = Server((host, port), Handler)
    context = server_context(source, is_id(CLIENT))
    tcp.socket = context.wrap_socket(tcp.socket, server_side=True, do_handshake_on_connect=False)
    return tcp


if __name__ == "__main__":
    with FileSource("/etc/certs") as source, server(source) as tcp:
        tcp.serve_forever()
