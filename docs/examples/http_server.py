"""The standard library's http.server over mutual TLS, one thread for each client."""

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from istio_auth import FileSource, SpiffeID, X509Source, is_id, peer_id, server_context

CLIENT = SpiffeID.parse("spiffe://cluster.local/ns/shop/sa/client")


class Handler(BaseHTTPRequestHandler):
    """Tells each client who it is."""

    timeout = 30  # seconds; for the handshake as well

    def do_GET(self) -> None:
        """Answer, once the client is proven."""
        body = f"{peer_id(self)}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def server(source: X509Source, host: str = "127.0.0.1", port: int = 8443) -> ThreadingHTTPServer:
    """A server that listens; without `do_handshake_on_connect` a slow client holds up its own thread alone."""
    http = ThreadingHTTPServer((host, port), Handler)
    context = server_context(source, is_id(CLIENT))
    http.socket = context.wrap_socket(http.socket, server_side=True, do_handshake_on_connect=False)
    return http


if __name__ == "__main__":
    with FileSource("/etc/certs") as source, server(source) as http:
        http.serve_forever()
