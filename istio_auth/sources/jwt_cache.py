"""Keeps JWT-SVIDs on hand: each is fetched again at half its life, and only once for all who want it at the time.

If a renewal fails, the JWT-SVID on hand is served until its end, and the next attempt waits a while. If it is refused
because the identity is not ours any more, the one on hand is dropped at once. A fetch is a "flight" here: the first
caller flies it, and the others wait until it has landed.
"""

from __future__ import annotations

import asyncio
import copy
import threading
from collections.abc import Callable, Collection
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta

from istio_auth.clock import Clock
from istio_auth.errors import IstioAuthError, NotAuthorized, NotReady
from istio_auth.jwt_svid import JWTSVID
from istio_auth.spiffe_id import SpiffeID, TrustDomain

_MOST = 1000  # a caller that always names new audiences must not fill the memory
_LONGEST_PAUSE = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which JWT-SVID somebody wants.

    Args:
        audiences: whom it is for, sorted.
        spiffe_id: the identity; None for the default one.
        hint: if not empty, the hint of the identity.
    """

    audiences: tuple[str, ...]
    spiffe_id: SpiffeID | None = None
    hint: str = ""


@dataclass(frozen=True, slots=True)
class _OnHand:
    svid: JWTSVID
    due: datetime  # from then on it is fetched again at its next use


class JWTSVIDCache:
    """Keeps what `fetch` returns. Usable from any thread and any event loop.

    Args:
        fetch: gets a JWT-SVID, blocking, or raises `IstioAuthError`.
        clock: tells when one is due, and when it has ended.
    """

    def __init__(self, fetch: Callable[[Wanted], JWTSVID], clock: Clock) -> None:
        self._fetch = fetch
        self._clock = clock
        self._on_hand: dict[Wanted, _OnHand] = {}
        self._flights: dict[Wanted, Future[JWTSVID]] = {}
        self._era = 0  # grows with each change; what was fetched in an earlier era is not kept
        self._lock = threading.Lock()

    def get(self, wanted: Wanted) -> JWTSVID:
        """The JWT-SVID, blocking while it is fetched.

        Raises:
            IstioAuthError: there is no valid one on hand, or the identity is not ours any more; what `fetch` raised.
        """
        flight, leads = self._board(wanted)
        if leads:
            self._fly(wanted, flight)
        return _landed(flight)

    async def get_async(self, wanted: Wanted) -> JWTSVID:
        """The JWT-SVID (see `get`), without blocking the loop."""
        flight, leads = self._board(wanted)
        if leads:
            await asyncio.to_thread(self._fly, wanted, flight)
        elif not flight.done():
            with suppress(IstioAuthError):
                await asyncio.wrap_future(flight)
        return _landed(flight)

    def renew(self, of: Collection[TrustDomain]) -> None:
        """Fetch those of these trust domains again at their next use; if that fails, those on hand are served."""
        with self._lock:
            self._era += 1
            now = self._clock.now()
            for wanted, held in self._on_hand.items():
                if held.svid.id.trust_domain in of:
                    self._on_hand[wanted] = _OnHand(held.svid, now)

    def forget(self) -> None:
        """Drop all that are on hand."""
        with self._lock:
            self._era += 1
            self._on_hand = {}

    def after_fork(self) -> None:
        """Called in a forked child, where the threads that held our lock, or were fetching, do not exist."""
        self._lock = threading.Lock()
        self._flights = {}

    def _board(self, wanted: Wanted) -> tuple[Future[JWTSVID], bool]:
        """The flight that brings the JWT-SVID, and whether the caller must fly it."""
        with self._lock:
            now, held, flight = self._clock.now(), self._on_hand.get(wanted), self._flights.get(wanted)
            renewed_by_another = flight is not None and held is not None and now < held.svid.expires_at
            if held is not None and (now < held.due or renewed_by_another):
                landed: Future[JWTSVID] = Future()
                landed.set_result(held.svid)
                return landed, False
            if flight is not None:
                return flight, False
            flight = self._flights[wanted] = Future()
            flight.set_running_or_notify_cancel()  # a caller that stops waiting does not stop the others
            return flight, True

    def _fly(self, wanted: Wanted, flight: Future[JWTSVID]) -> None:
        try:
            flight.set_result(self._renewed(wanted))
        except IstioAuthError as error:
            flight.set_exception(error)
        except BaseException:
            flight.set_exception(NotReady("fetching a JWT-SVID was interrupted"))
            raise
        finally:
            with self._lock:
                self._flights.pop(wanted, None)

    def _renewed(self, wanted: Wanted) -> JWTSVID:
        era = self._era
        try:
            svid = self._fetch(wanted)
            if self._clock.now() >= svid.expires_at:
                raise NotReady(f"the JWT-SVID of {svid.id} that came has ended at {svid.expires_at.isoformat()}")
        except NotAuthorized:
            with self._lock:
                self._on_hand.pop(wanted, None)
            raise
        except IstioAuthError:
            if (kept := self._kept(wanted)) is None:
                raise
            return kept
        self._keep(wanted, svid, era)
        return svid

    def _keep(self, wanted: Wanted, svid: JWTSVID, era: int) -> None:
        with self._lock:
            if era != self._era:
                return
            now = self._clock.now()
            live = {key: held for key, held in self._on_hand.items() if now < held.svid.expires_at and key != wanted}
            while len(live) >= _MOST:
                del live[next(iter(live))]
            self._on_hand = live | {wanted: _OnHand(svid, now + (svid.expires_at - now) / 2)}

    def _kept(self, wanted: Wanted) -> JWTSVID | None:
        """The one on hand, after a renewal failed; None if it has ended."""
        with self._lock:
            now, held = self._clock.now(), self._on_hand.get(wanted)
            if held is None or now >= held.svid.expires_at:
                return None
            pause = min((held.svid.expires_at - now) / 4, _LONGEST_PAUSE)
            self._on_hand[wanted] = _OnHand(held.svid, now + pause)
            return held.svid


def _landed(flight: Future[JWTSVID]) -> JWTSVID:
    if (error := flight.exception()) is not None:
        raise copy.copy(error)  # one error raised by several threads would gather all their tracebacks
    return flight.result()
