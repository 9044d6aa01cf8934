"""When to call the Workload API again, by how the last call ended and how often that happened; or never again.

If the server says that the call itself is wrong, or that it does not have the method, it is not asked again (Workload
Endpoint 6). Everything else may pass. If the agent does not answer, it is asked again soon; if it knows no identity for
us, less often, since it has to attest us each time. A stream that ends without error is opened again at once (WA-07),
but with growing waits if it keeps ending.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from istio_auth.errors import IstioAuthError, MalformedError, NotReady, UnknownMethod
from istio_auth.rotation import retry_delay
from istio_auth.rpc.answers import UnreadableAnswer
from istio_auth.rpc.forking import Forked

CALM = timedelta(seconds=10)  # after a stream that lived this long, counting starts again
LONGEST_HINT = timedelta(minutes=1)  # the longest wait that a server may ask for

_NOW = timedelta()
# The bounds of the first wait and of every wait.
_SOON = (timedelta(milliseconds=100), timedelta(seconds=5))
_SELDOM = (timedelta(seconds=1), timedelta(seconds=30))


def is_final(error: IstioAuthError) -> bool:
    """Whether calling again can not help."""
    return isinstance(error, MalformedError | UnknownMethod | Forked) and not isinstance(error, UnreadableAnswer)


class Backoff:
    """The waits between attempts at one stream. Each kind of failure is counted by itself.

    Args:
        draw: gives a random number in [0, 1); called once for each wait.
    """

    def __init__(self, draw: Callable[[], float]) -> None:
        self._draw = draw
        self._ends = self._absences = self._refusals = 0

    def ended(self, lived: timedelta) -> timedelta:
        """The wait after a stream that lived this long and ended without error."""
        self._forget(lived)
        self._ends += 1
        return _NOW if self._ends == 1 else self._wait(self._ends - 1, _SOON)

    def failed(self, error: IstioAuthError, lived: timedelta) -> timedelta | None:
        """The wait after a stream that lived this long and failed; None if it must not be opened again."""
        if is_final(error):
            return None
        self._forget(lived)
        if isinstance(error, NotReady):
            self._absences += 1
            wait = self._wait(self._absences, _SOON)
        else:
            self._refusals += 1
            wait = self._wait(self._refusals, _SELDOM)
        return max(wait, min(error.retry_after or _NOW, LONGEST_HINT))

    def _forget(self, lived: timedelta) -> None:
        if lived >= CALM:
            self._ends = self._absences = self._refusals = 0

    def _wait(self, attempt: int, bounds: tuple[timedelta, timedelta]) -> timedelta:
        first, longest = bounds
        return retry_delay(attempt, draw=self._draw(), first=first, longest=longest)
