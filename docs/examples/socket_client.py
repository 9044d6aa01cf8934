"""A TLS client on plain sockets."""

import socket

from istio_auth import FileSource, SpiffeID, X509Source, client_context, is_id, peer_id

SERVER = SpiffeID.parse("spiffe://cluster.local/ns/shop/sa/server")


def ask(source: X509Source, host: str = "127.0.0.1", port: int = 8443) -> str:
    """Say one line, and return the answer with the name of the server."""
    context = client_context(source, is_id(SERVER))
    with (
        socket.create_connection((host, port), timeout=30) as plain,
        context.wrap_socket(plain, server_hostname=host) as connection,  # raises PeerRefused for a wrong server
    ):
        connection.sendall(b"hello\n")
        answer = connection.recv(1024)  # a server that refuses us does so here, not before
        return f"{peer_id(connection)} answers {answer.decode()}"


if __name__ == "__main__":
    with FileSource("/etc/certs") as source:
        print(ask(source))
