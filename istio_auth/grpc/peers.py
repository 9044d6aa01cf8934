"""Who calls, for a handler: its gRPC context names a connection, and the door knows who is behind it.

gRPC's own `auth_context()` is empty here, and would show the leaf alone. A caller that reached the private server past
the door (a process of the same user, or a port that the application added by itself) is nobody, and refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from cryptography import x509

from istio_auth.door import Door, TLSCaller
from istio_auth.errors import NotAuthenticated
from istio_auth.spiffe_id import SpiffeID

_open: set[Door] = set()  # names of connections are random and 128 bits long: one is known at one door at the most


class PeerContext(Protocol):
    """What is asked of a context: a `grpc.aio.ServicerContext` or a `grpc.ServicerContext`."""

    def peer(self) -> str:
        """The connection's other end, as gRPC names it."""
        ...


@contextmanager
def known(door: Door) -> Iterator[None]:
    """Let handlers know the callers of a door for so long."""
    _open.add(door)
    try:
        yield
    finally:
        _open.discard(door)


def peer_id(context: PeerContext) -> SpiffeID:
    """The SPIFFE ID of a call's caller; proven, and welcome to the authorizer of `serve_grpc`.

    Args:
        context: the one that gRPC gave to the handler.

    Raises:
        NotAuthenticated: it did not come through a door, or its connection has ended meanwhile.
    """
    spiffe_id = _caller(context).spiffe_id
    if spiffe_id is None:
        raise NotAuthenticated("the caller presented no certificate")
    return spiffe_id


def peer_chain(context: PeerContext) -> tuple[x509.Certificate, ...]:
    """The chain that proved a call's caller, leaf first (see `peer_id`)."""
    return _caller(context).chain


def _caller(context: PeerContext) -> TLSCaller:
    peer = context.peer()
    for door in tuple(_open):  # handlers may run on any thread
        try:
            caller = door.caller(peer)
        except NotAuthenticated:
            continue
        if isinstance(caller, TLSCaller):
            return caller
    raise NotAuthenticated(f"{peer!r} did not come through the door, or its connection has ended")
