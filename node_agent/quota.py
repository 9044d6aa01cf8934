"""Limits what callers have open and ask for: per process, per user, per socket, and in all.

* A stream, or another call while it lasts, counts for its process, its user and its socket. A tenth of all is kept for
  users that have few, so that nobody can take what others need.
* A new call and each request on a stream take one from the budget of their process and of their user. A budget fills up
  again with time. A user's is twenty times a process's: many sidecars run as one user.
* Behind the socket of a pod are processes that can not be told apart, of users that other pods have too. So there all
  of a pod's streams and requests count together, and for that pod alone.
* Whoever is over a limit is refused with RESOURCE_EXHAUSTED and the limit's name, after a moment: a caller that tries
  again at once would otherwise cost more than one that is served.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TypeAlias

import structlog

from istio_auth.door import UnixCaller
from istio_auth.errors import Exhausted
from istio_auth.rpc.method import Call
from istio_auth.strict_json import JSON
from node_agent.limits import LimitsSettings

_FEW = 8  # streams of one user
_USER = 20  # budgets of a process
_SWEEP_ABOVE = 1_000  # accounts, or twice those that the last sweep left
_QUIET = 10.0  # seconds between two lines of the log on one account
_SHOWN = 5  # of the busiest users
_AGAIN = timedelta(seconds=1)
_Key: TypeAlias = tuple[str, object]
_Keys: TypeAlias = tuple[_Key, _Key, _Key]  # of process, user and socket
log = structlog.get_logger()


class _Account:
    """What one process, user or socket has open, and what is left of its budget."""

    __slots__ = ("at", "left", "streams", "told")

    def __init__(self, left: float, at: float) -> None:
        self.streams, self.left, self.at, self.told = 0, left, at, -_QUIET

    def fill(self, now: float, *, burst: float, per_second: float) -> float:
        self.left = min(burst, self.left + (now - self.at) * per_second)
        self.at = now
        return self.left


class Quota:
    """The accounts of all callers. For one event loop.

    Args:
        limits: the limits.
        refused: told the name of the limit at each refusal.
        by_pod: whether each socket is that of a pod.
        moment: how long a refusal takes, in seconds.
        now: a clock that never goes back, in seconds.
    """

    def __init__(
        self,
        limits: LimitsSettings,
        refused: Callable[[str], None],
        *,
        by_pod: bool = False,
        moment: float = 1.0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits, self._refused, self._moment, self._now = limits, refused, moment, now
        self._by_pod = by_pod
        self._accounts: dict[_Key, _Account] = {}
        self._sweep_at = _SWEEP_ABOVE
        self._streams = 0

    @asynccontextmanager
    async def stream(self, call: Call) -> AsyncIterator[Callable[[], None]]:
        """Count a stream or another call for as long as it is open; what it yields is called for each request on it.

        Raises:
            Exhausted: its caller is over a limit.
        """
        caller = call.caller
        process, user, socket = keys = (
            self._keys_of(caller) if isinstance(caller, UnixCaller) else _one(str(caller), "")
        )

        def spend() -> None:
            try:
                self._spend(process, user)
            except Exhausted as error:
                self._note(error, str(caller), process)
                raise

        try:
            self._check_streams(process, user, socket)
            self._spend(process, user)
        except Exhausted as error:
            self._note(error, str(caller), process)
            await asyncio.sleep(self._moment)
            raise
        self._count(keys, 1)
        try:
            yield spend
        finally:
            self._count(keys, -1)

    def document(self) -> dict[str, JSON]:
        """What is open, and of whom most, as plain data."""
        users = {key[1]: each.streams for key, each in self._accounts.items() if key[0] == "user" and each.streams}
        busiest = sorted(users.items(), key=lambda each: each[1], reverse=True)[:_SHOWN]
        return {
            "streams": self._streams,
            "streams_allowed": self._limits.streams,
            "streams_per_user_allowed": self._limits.streams_per_user,
            "busiest": [{"uid": str(uid), "streams": streams} for uid, streams in busiest],
        }

    def _keys_of(self, caller: UnixCaller) -> _Keys:
        return _one(caller.socket, caller.socket) if self._by_pod else _keys(caller)

    def _check_streams(self, process: _Key, user: _Key, socket: _Key) -> None:
        limits = self._limits
        if self._by_pod:
            if (is_open := self._account(socket).streams) >= limits.streams_per_pod:
                raise _over("streams_per_pod", f"{is_open} are open, and {limits.streams_per_pod} are allowed")
            return
        theirs = self._account(user).streams
        reserve = limits.streams // 10 if theirs >= _FEW else 0
        for name, is_open, allowed in (
            ("streams_per_process", self._account(process).streams, limits.streams_per_process),
            ("streams_per_user", theirs, limits.streams_per_user),
            ("streams_per_socket", self._account(socket).streams, limits.streams_per_socket),
            ("streams", self._streams, limits.streams - reserve),
        ):
            if is_open >= allowed:
                raise _over(name, f"{is_open} are open, and {allowed} are allowed")

    def _spend(self, process: _Key, user: _Key) -> None:
        now, burst, rate = self._now(), self._limits.request_burst, self._limits.requests_per_second
        accounts = ((self._account(process), 1), (self._account(user), _USER))
        if any(each.fill(now, burst=burst * times, per_second=rate * times) < 1 for each, times in accounts):
            raise _over("requests_per_second", f"{rate} are allowed in the long run")
        for each, _ in accounts:
            each.left -= 1

    def _note(self, error: Exhausted, caller: str, process: _Key) -> None:
        self._refused(str(error).partition(":")[0].removeprefix("limits."))
        account, now = self._account(process), self._now()
        if now - account.told >= _QUIET:
            account.told = now
            log.warning("a caller is over a limit; it is refused", caller=caller, reason=str(error))

    def _count(self, keys: tuple[_Key, ...], step: int) -> None:
        self._streams += step
        for key in keys:
            self._account(key).streams += step

    def _account(self, key: _Key) -> _Account:
        if (account := self._accounts.get(key)) is None:
            if len(self._accounts) >= self._sweep_at:
                self._sweep()
            burst = self._limits.request_burst * (_USER if key[0] == "user" else 1)
            account = self._accounts[key] = _Account(burst, self._now())
        return account

    def _sweep(self) -> None:
        """Forget who has nothing open, and had time enough for its budget to be full again."""
        old = self._now() - self._limits.request_burst / self._limits.requests_per_second
        for key in [key for key, each in self._accounts.items() if not each.streams and each.at < old]:
            del self._accounts[key]
        self._sweep_at = max(_SWEEP_ABOVE, 2 * len(self._accounts))  # or each newcomer of a crowd would cost a sweep


def _keys(caller: UnixCaller) -> _Keys:
    process = (caller.pid, caller.process.started) if caller.process is not None else ("unseen", caller.uid)
    return ("process", process), ("user", caller.uid), ("socket", caller.socket)


def _one(caller: str, socket: str) -> _Keys:
    return ("process", caller), ("user", caller), ("socket", socket)


def _over(limit: str, words: str) -> Exhausted:
    message = f"limits.{limit}: {words}"
    return Exhausted(message, public=message, retry_after=_AGAIN)
