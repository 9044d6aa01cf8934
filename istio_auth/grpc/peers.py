"""Who calls, for a handler: its gRPC context names a connection, and the door knows who is behind it.

gRPC's own `auth_context()` is empty here, and would show the leaf alone. A caller that did not come through the door
has no identity here and is refused: a process of the same user, or a caller at a port that the application added by
itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from cryptography import x509

from istio_auth.door import Door, TLSCaller
from istio_auth.errors import NotAuthenticated
from istio_auth.spiffe_id import SpiffeID

_open: set[Door] = set()  # names of connections are random and 128 bits long: no two doors have the same one


class PeerContext(Protocol):
    """What we need of a handler's context: a `grpc.aio.ServicerContext` or a `grpc.ServicerContext`."""

    def peer(self) -> str:
        """The connection's other end, as gRPC names it."""
        ...


@contextmanager
def known(door: Door) -> Iterator[None]:
    """Let handlers know the callers of a door, inside the `with` block."""
    _open.add(door)
    try:
        yield
    finally:
        _open.discard(door)


def peer_id(context: PeerContext) -> SpiffeID:
    """The SPIFFE ID of a call's caller. It is proven, and the authorizer of `serve_grpc` has admitted it.

    Args:
        context: the one that gRPC gave to the handler.

    Raises:
        NotAuthenticated: the caller did not come through a door, or its connection has ended meanwhile.
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
