"""A TLS server on plain sockets, one thread for each client."""

import logging
import socket
import ssl
import threading

from istio_auth import FileSource, SpiffeID, X509Source, is_id, peer_id, server_context

LOG = logging.getLogger(__name__)
CLIENT = SpiffeID.parse("spiffe://cluster.local/ns/shop/sa/client")


def greet(context: ssl.SSLContext, plain: socket.socket) -> None:
    """Answer one line of one client; the handshake is made here, so that a slow client holds up nobody else."""
    plain.settimeout(30)  # for the handshake as well
    try:
        with plain, context.wrap_socket(plain, server_side=True) as connection:
            line = connection.recv(1024)
            connection.sendall(f"{peer_id(connection)} says {line.decode()}".encode())
    except OSError as error:  # PeerRefused for a stranger
        LOG.warning("no answer: %s", error)


def serve(source: X509Source, listener: socket.socket) -> None:
    """Serve every client, until the listener is closed."""
    context = server_context(source, is_id(CLIENT))
    while True:
        plain, _ = listener.accept()
        threading.Thread(target=greet, args=(context, plain), daemon=True).start()


if __name__ == "__main__":
    with FileSource("/etc/certs") as source, socket.create_server(("127.0.0.1", 8443)) as listener:
        serve(source, listener)
