"""What the kernel says of a caller: `unix:uid:N` and `unix:gid:N`, as they were when it connected (SO_PEERCRED)."""

from __future__ import annotations

from istio_auth.door import UnixCaller
from istio_auth.registration import Selector


class UnixAttestor:
    """A `WorkloadAttestor` for user and group."""

    async def attest(self, peer: UnixCaller) -> frozenset[Selector]:
        """The caller's user and group."""
        return frozenset({Selector("unix", f"uid:{peer.uid}"), Selector("unix", f"gid:{peer.gid}")})
