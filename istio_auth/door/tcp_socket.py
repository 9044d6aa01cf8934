"""Listening TCP sockets: for an address, all addresses of a name, or every address of the machine, at one port."""

from __future__ import annotations

import errno
import socket
from contextlib import ExitStack

from istio_auth.door.unix_socket import BACKLOG
from istio_auth.errors import ConfigurationError, NotReady
from istio_auth.host_port import HostPort

_EVERYWHERE = frozenset({"", "::"})
_PASSING = frozenset({errno.EADDRINUSE, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})


def listening_sockets(host: str, port: int) -> list[socket.socket]:
    """Sockets that listen at a host, all at the same port.

    Args:
        host: an address, or a name for all of its addresses; empty, and `::`, mean every address, IPv6 and IPv4.
        port: 0 for any that is free.

    Raises:
        ConfigurationError: there is no such address here, or we may not listen on it.
        NotReady: somebody else listens there, or the machine is out of sockets.
    """
    where = HostPort(host, port)
    try:
        return [_everywhere(port)] if host in _EVERYWHERE else _at_each_address(host, port)
    except socket.gaierror as error:
        raise ConfigurationError(f"can not listen on {where}: {error.strerror}") from error
    except OSError as error:
        message = f"can not listen on {where}: {error.strerror}"
        raise NotReady(message) if error.errno in _PASSING else ConfigurationError(message) from error


def _at_each_address(host: str, port: int) -> list[socket.socket]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    listening: list[socket.socket] = []
    with ExitStack() as to_close:
        for family, (address, _, *scope) in dict.fromkeys((family, where) for family, _, _, _, where in found):
            place = (str(address), port, *scope)
            listening.append(to_close.enter_context(socket.create_server(place, family=family, backlog=BACKLOG)))
            port = listening[0].getsockname()[1]
        to_close.pop_all()
    return listening


def _everywhere(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=BACKLOG)
    return socket.create_server(("0.0.0.0", port), backlog=BACKLOG)
