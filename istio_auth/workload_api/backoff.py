"""When to call the Workload API again: how a call ended and how often that happened make a wait, or the end.

A server that says that the call itself is wrong, or that it does not have the method, is not asked again (Workload
Endpoint 6). Everything else may pass: an agent that is away is asked again soon, one that knows no identity for us
more seldom, since it has to attest us each time. A stream that ends well is opened again at once (WA-07), but one that
keeps ending is not opened in a hot loop.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from istio_auth.errors import IstioAuthError, MalformedError, NotReady
from istio_auth.rotation import retry_delay
from istio_auth.rpc.answers import UnreadableAnswer
from istio_auth.rpc.forking import Forked
from istio_auth.rpc.status import UnknownMethod

CALM = timedelta(seconds=10)  # a stream that lived so long starts a new count
LONGEST_HINT = timedelta(minutes=1)  # the longest wait that a server may ask for

_SOON = (timedelta(milliseconds=100), timedelta(seconds=5))
_SELDOM = (timedelta(seconds=1), timedelta(seconds=30))
_NOW = timedelta()


def is_final(error: IstioAuthError) -> bool:
    """Whether calling again can not help."""
    return isinstance(error, MalformedError | UnknownMethod | Forked) and not isinstance(error, UnreadableAnswer)


class Backoff:
    """The waits of one stream.

    Args:
        draw: gives a number in [0, 1), anew for each wait.
    """

    def __init__(self, draw: Callable[[], float]) -> None:
        self._draw = draw
        self._attempts = 0

    def ended(self, lived: timedelta) -> timedelta:
        """The wait after a stream that ended well, or was cut off by ourselves, having lived so long."""
        self._count(lived)
        return self._wait(_SOON, self._attempts - 1)

    def failed(self, error: IstioAuthError, lived: timedelta) -> timedelta | None:
        """The wait after a stream that failed, having lived so long; None if it is not to be opened again."""
        if is_final(error):
            return None
        self._count(lived)
        wait = self._wait(_SOON if isinstance(error, NotReady) else _SELDOM, self._attempts)
        return max(wait, min(error.retry_after or _NOW, LONGEST_HINT))

    def _count(self, lived: timedelta) -> None:
        self._attempts = 1 if lived >= CALM else self._attempts + 1

    def _wait(self, bounds: tuple[timedelta, timedelta], attempt: int) -> timedelta:
        if attempt == 0:
            return _NOW
        first, longest = bounds
        return retry_delay(attempt, draw=self._draw(), first=first, longest=longest)
