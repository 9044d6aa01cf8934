"""Listening sockets: IPv4, IPv6, or every address of the machine by one socket with one port."""

from __future__ import annotations

import errno
import socket

from istio_auth.daemon.values import HostPort
from istio_auth.errors import ConfigurationError, NotReady

_EVERYWHERE = frozenset({"", "::"})
_PASSING = frozenset({errno.EADDRINUSE, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})


def listening_socket(address: HostPort) -> socket.socket:
    """A socket that listens there. An empty host, and `::`, mean every address, IPv6 and IPv4.

    Raises:
        ConfigurationError: there is no such address here, or we may not listen on it.
        NotReady: somebody else listens there, or the machine is out of sockets.
    """
    try:
        if address.host in _EVERYWHERE:
            return _everywhere(address.port)
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, where = found[0]
        return socket.create_server((str(where[0]), *where[1:]), family=family)
    except socket.gaierror as error:
        raise ConfigurationError(f"can not listen on {address}: {error.strerror}") from error
    except OSError as error:
        message = f"can not listen on {address}: {error.strerror}"
        raise NotReady(message) if error.errno in _PASSING else ConfigurationError(message) from error


def address_of(listening: socket.socket) -> HostPort:
    """Where a socket listens, with the port that the system chose."""
    host, port = listening.getsockname()[:2]
    return HostPort(host, port)


def _everywhere(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("0.0.0.0", port))
