"""Who is the workload at the other end of a socket? The `WorkloadAttestor` port, and all of them together."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from istio_auth.door import UnixCaller
from istio_auth.registration import Selector
from node_agent.attest.socket import SocketAttestor


class WorkloadAttestor(Protocol):
    """Observes selectors of a caller."""

    async def attest(self, peer: UnixCaller) -> frozenset[Selector]:
        """What is to be seen of the caller.

        Raises:
            NotAuthenticated: the caller can not be told from another.
            NotReady: that can not be said now.
        """
        ...


async def attest_all(attestors: Iterable[WorkloadAttestor], peer: UnixCaller) -> frozenset[Selector]:
    """Everything that is to be seen of the caller.

    Raises:
        NotAuthenticated: the caller can not be told from another, or has ended meanwhile: what was seen under its
            process id may have been another process's.
        NotReady: that can not be said now.
    """
    observers = tuple(attestors)
    by_process = not all(isinstance(each, SocketAttestor) for each in observers)  # or else the door alone is asked
    if by_process:
        peer.check_same_process()
    seen = frozenset[Selector]().union(*[await each.attest(peer) for each in observers])
    if by_process:
        peer.check_same_process()
    return seen
