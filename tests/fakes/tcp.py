"""TCP over loopback, for tests that need real sockets."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator


@contextlib.contextmanager
def pair(*, timeout: float | None = 10) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two sockets that are connected with each other: the one that dialled, and the one that was dialled."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        dialled = socket.create_connection(listener.getsockname())
        accepted, _ = listener.accept()
    with dialled, accepted:
        for end in (dialled, accepted):
            end.settimeout(timeout)
        yield dialled, accepted


def reset(connection: socket.socket) -> None:
    """Close a connection so that the other end is told of a reset."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def closed_port() -> int:
    """A port of 127.0.0.1 where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port
