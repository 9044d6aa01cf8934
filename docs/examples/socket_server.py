"""A TLS server on plain sockets, one thread for each client."""

import logging
import socket
import ssl
import threading

from istio_auth import FileSource, SpiffeID, X509Source, is_id, peer_id, server_context

LOG = logging.getLogger(__name__)
CLIENT = SpiffeID.parse("spiffe://cluster.local/ns/shop/sa/client")


def greet(connection: ssl.SSLSocket) -> None:
    """Answer one line of one client."""
    with connection:
        connection.settimeout(30)  # for the handshake as well
        try:
            line = connection.recv(1024)  # the first read completes the handshake
            connection.sendall(f"{peer_id(connection)} says {line.decode()}".encode())
        except OSError as error:  # PeerRefused for a stranger
            LOG.warning("no answer: %s", error)


def serve(source: X509Source, listener: socket.socket) -> None:
    """Serve every client, until the listener is closed."""
    context = server_context(source, is_id(CLIENT))
    with context.wrap_socket(listener, server_side=True, do_handshake_on_connect=False) as secure:
        while True:
            connection, _ = secure.accept()
            threading.Thread(target=greet, args=(connection,), daemon=True).start()


if __name__ == "__main__":
    with FileSource("/etc/certs") as source:
        serve(source, socket.create_server(("127.0.0.1", 8443)))
