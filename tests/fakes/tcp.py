"""TCP over loopback, for tests that need real sockets.

Ports that are handed out are below those of outgoing connections, and each process of the tests has ports of its own:
between the look whether one is free and the start of its server nobody else takes it, and not while the server is away.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import random
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_EACH = 100  # ports for one process at a time


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
    """A port of 127.0.0.1 where nobody listens, and nobody will but who is told of it."""
    for port in itertools.islice(_ports_of_this_process(), _EACH):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: old connections are no matter
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port
    raise AssertionError("no port of this process is free")


@functools.cache
def _ports_of_this_process() -> Iterator[int]:
    """Over and over; they are others' again when the process ends, as the name is that the kernel keeps for it."""
    end = int(_EPHEMERAL.read_text().split()[0])
    begins = range(end // 2, end - _EACH, _EACH)
    for begin in random.sample(begins, len(begins)):
        name = socket.socket(socket.AF_UNIX)
        try:
            name.bind(f"\0istio-auth-tests-{begin}")
        except OSError:
            name.close()
            continue
        _names.append(name)
        return itertools.cycle(range(begin, begin + _EACH))
    raise AssertionError("all ports are given to processes of the tests")


_names: list[socket.socket] = []  # open as long as the process lives
