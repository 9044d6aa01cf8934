"""Source: what every kind of source does alike, as one snapshot that is replaced whole.

Whoever fills it says `_offer` or `_hold` (a new snapshot), `_trouble` (the last good one stays) or `_lose` (nothing is
served any more), from any thread; everybody else reads one reference. An SVID that nobody renews is spoken of in the
log before it ends, and is not served after that. No thread and no timer is needed for it: each use looks at the clock.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import os
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from types import TracebackType
from typing import Self

from istio_auth.bundle import TrustBundle
from istio_auth.clock import Clock, in_words
from istio_auth.errors import IstioAuthError, MissingError, NotReady
from istio_auth.sources.expiry import Notice, Notices, due, notices
from istio_auth.spiffe_id import SpiffeID, TrustDomain
from istio_auth.subscribers import Subscribers
from istio_auth.svid import X509SVID
from istio_auth.system_clock import SystemClock
from istio_auth.x509_source import X509Context

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SourceStatus:
    """How a source is at one moment.

    Args:
        ready: whether it serves a snapshot.
        spiffe_id: of the default SVID; None while none is held.
        age: how long the snapshot has been held; None while none is.
        remaining: how long the default SVID is still valid, never less than nothing; None while none is held.
        trouble: what went wrong last and is not over; None if all is well.
        updates: how often a snapshot was put in the place of another, the first included.
    """

    ready: bool
    spiffe_id: SpiffeID | None
    age: timedelta | None
    remaining: timedelta | None
    trouble: str | None
    updates: int


@dataclass(frozen=True, slots=True)
class _State:
    """All that changes, in one reference.

    Args:
        context: the snapshot; None before the first, and after it was lost.
        since: when it came.
        end: from when on it is not served; None for one whose owner decides.
        lost: why there is none, where that was said.
        trouble: what went wrong since.
        pending: what will have to be said of its SVIDs.
    """

    context: X509Context | None = None
    since: datetime | None = None
    end: datetime | None = None
    lost: IstioAuthError | None = None
    trouble: str | None = None
    updates: int = 0
    pending: Notices = ()
    closed: bool = False


class Source:
    """The base of all sources: an `X509Source` that one can wait for, follow and ask how it is.

    Args:
        origin: where its content comes from, as messages say it: `the files in /etc/certs`.
        remedy: what somebody can do who waits in vain.
        clock: tells the age of what is held, and when it ends; the machine's by default.
        serve_ended: whether an SVID is served after its end, for a peer to refuse it.
    """

    def __init__(self, origin: str, remedy: str, *, clock: Clock | None = None, serve_ended: bool = False) -> None:
        self._origin = origin
        self._remedy = remedy
        self._clock = clock or SystemClock()
        self._serve_ended = serve_ended
        self._state = _State()
        self._subscribers = Subscribers()
        self._changed = threading.Condition()
        self._forked = False
        _SOURCES.add(self)

    def x509_context(self) -> X509Context:
        """The present snapshot; cheap, callable from any thread.

        Raises:
            NotReady: nothing has arrived yet, the default SVID has ended, or the source is closed.
            IstioAuthError: the source was told that it may serve nothing any more; that reason.
        """
        state, now = self._used(), self._clock.now()
        if state.context is None or state.closed or (state.end is not None and now >= state.end):
            raise self._refusal(state)
        return state.context

    def svid(self, hint: str | None = None) -> X509SVID:
        """The default SVID, or the first with this hint (see `x509_context`).

        Raises:
            MissingError: no SVID has this hint.
        """
        context = self.x509_context()
        if hint is None:
            return context.svid
        for svid in context.svids:
            if svid.hint == hint:
                return svid
        hints = ", ".join(repr(svid.hint) for svid in context.svids)
        raise MissingError(f"no SVID of {self._origin} has the hint {hint!r}; there are {hints or 'no SVIDs'}")

    def bundle(self, trust_domain: TrustDomain) -> TrustBundle:
        """The bundle of a trust domain (see `x509_context`).

        Raises:
            VerificationError: that trust domain is not trusted.
        """
        return self.x509_context().bundle(trust_domain)

    def subscribe(self, changed: Callable[[], None]) -> Callable[[], None]:
        """Call `changed`, on whichever thread makes the change, after each change; what it raises is logged.

        Returns:
            a function that ends the subscription.
        """
        self._used()

        def guarded() -> None:
            try:
                changed()
            except Exception:  # noqa: BLE001  # whatever it is, it must not stop who makes the change
                _LOG.exception("a subscriber of %s failed", self._origin)

        return self._subscribers.add(guarded)

    def wait_until_ready(self, timeout: timedelta) -> None:
        """Block until there is a snapshot to serve. Not for an event loop: see `ready`.

        Raises:
            NotReady: there is none after this time, or the source is closed; says why, and what to do.
        """
        self._used()
        with self._changed:
            self._changed.wait_for(self._decided, timeout.total_seconds())
        self._refuse_unready(timeout)

    async def ready(self, timeout: timedelta) -> None:  # noqa: ASYNC109  # the same signature as wait_until_ready
        """Wait until there is a snapshot to serve (see `wait_until_ready`)."""
        with self._heard() as changed:
            try:
                async with asyncio.timeout(timeout.total_seconds()):
                    while not self._decided():
                        changed.clear()
                        await changed.wait()
            except TimeoutError:
                pass  # told below, with the reason
        self._refuse_unready(timeout)

    async def updates(self) -> AsyncGenerator[X509Context]:
        """The present snapshot, then each that takes its place, until the source is closed.

        Who is slow misses what was replaced meanwhile, and gets the latest.
        """
        last = None
        with self._heard() as changed:
            while not self._state.closed:
                changed.clear()
                context = self._state.context if self._serves(self._state) else None
                if context is None or context is last:
                    await changed.wait()
                else:
                    last = context
                    yield context

    def status(self) -> SourceStatus:
        """How the source is now; cheap, callable from any thread."""
        state, now = self._used(), self._clock.now()
        svid = state.context.svids[0] if state.context is not None and state.context.svids else None
        serves = self._serves(state)
        return SourceStatus(
            ready=serves,
            spiffe_id=None if svid is None else svid.id,
            age=None if state.since is None else max(now - state.since, timedelta()),
            remaining=None if svid is None else max(svid.not_after - now, timedelta()),
            trouble=state.trouble if serves else str(self._refusal(state)),
            updates=state.updates,
        )

    def close(self) -> None:
        """Serve nothing any more, and end who waits. For good; more than once does nothing."""
        self._replace(lambda state: replace(state, context=None, since=None, end=None, pending=(), closed=True))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.close)  # a subclass may wait for its thread

    # For subclasses ------------------------------------------------------------------------------------------------

    def _hold(self, context: X509Context) -> None:
        """Put a snapshot in the place of the old one, and tell everybody. Any trouble is over."""
        now = self._clock.now()
        end = context.svids[0].not_after if context.svids and not self._serve_ended else None

        def held(state: _State) -> _State:
            before = state.context.svids if state.context is not None else ()
            pending = notices(context.svids, before, state.pending)
            return _State(context, now, end, updates=state.updates + 1, pending=pending)

        self._replace(held)

    def _offer(self, context: X509Context) -> None:
        """Hold a snapshot, unless it says what is held already: then that one stays, and any trouble is over."""
        state = self._state
        if state.context is None or _content(state.context) != _content(context):
            self._hold(context)
        elif state.trouble is not None:
            self._replace(lambda state: replace(state, trouble=None))

    def _lose(self, reason: IstioAuthError) -> None:
        """Serve nothing any more, until the next snapshot: `x509_context` raises this reason."""
        self._replace(lambda state: _State(lost=copy.copy(reason), trouble=str(reason), updates=state.updates))

    def _trouble(self, error: Exception) -> None:
        """Keep the last good snapshot, and tell of this by `status` and, if it is new, in the log."""
        self._replace(lambda state: replace(state, trouble=str(error) or type(error).__name__))

    def _look(self) -> None:
        """Say in the log what must be said of SVIDs that end. For a source's own thread, now and then."""
        if not (self._state.pending and self._clock.now() >= self._state.pending[0].at):
            return
        with self._changed:
            now, state = self._clock.now(), self._state
            said, later = due(state.pending, now)
            self._state = replace(state, pending=later)
        for notice in said:
            self._say(notice, now, state.trouble)

    def _resume(self) -> None:
        """Called in a forked child at the first use there: start again what a thread did. Does nothing by default."""

    def _after_fork(self) -> None:
        """Called in a forked child, whose only thread is the one that forked: whoever held our locks is not here."""
        self._changed = threading.Condition()
        self._subscribers.after_fork()
        self._forked = True

    # ---------------------------------------------------------------------------------------------------------------

    def _used(self) -> _State:
        if self._forked:
            with self._changed:
                first, self._forked = self._forked, False
            if first:
                self._resume()
        self._look()
        return self._state

    def _serves(self, state: _State) -> bool:
        ended = state.end is not None and self._clock.now() >= state.end
        return state.context is not None and not state.closed and not ended

    def _decided(self) -> bool:
        return self._state.closed or self._serves(self._state)

    def _replace(self, change: Callable[[_State], _State]) -> None:
        with self._changed:
            old = self._state
            if old.closed:
                return
            self._state = new = change(old)
            self._changed.notify_all()
        if new.trouble is not None and new.trouble != old.trouble:
            stays = "what was held is not served any more" if new.lost else "what is held stays"
            _LOG.warning("%s: %s (%s)", self._origin, new.trouble, stays if old.context else "nothing is held yet")
        elif old.trouble is not None and new.trouble is None and not new.closed:
            _LOG.info("%s: all is well again", self._origin)
        if new.context is not old.context or new.closed:
            self._subscribers.tell()

    def _refusal(self, state: _State) -> IstioAuthError:
        if state.closed:
            return NotReady(f"the source of {self._origin} is closed")
        if state.lost is not None:
            return copy.copy(state.lost)  # one error raised by several threads would gather all their tracebacks
        if state.context is None:
            return NotReady(f"no SVID has arrived yet from {self._origin}{_because(state.trouble)}")
        svid = state.context.svid
        return NotReady(
            f"the SVID {svid.id} from {self._origin} has ended at {svid.not_after.isoformat()} and was not renewed"
            f"{_because(state.trouble)}; {self._remedy}"
        )

    def _refuse_unready(self, patience: timedelta) -> None:
        state = self._state
        if state.closed:
            raise self._refusal(state)
        if not self._serves(state):
            waited = f"not ready after {in_words(patience)}"
            raise NotReady(f"{waited}: {str(self._refusal(state)).removesuffix(f'; {self._remedy}')}; {self._remedy}")

    def _say(self, notice: Notice, now: datetime, trouble: str | None) -> None:
        end, why = notice.at.isoformat(), _because(trouble)
        if notice.ended:
            text = "the SVID %s from %s has ended at %s and was not renewed%s; %s"
            _LOG.error(text, notice.svid.id, self._origin, end, why, self._remedy)
        else:
            end, left = notice.svid.not_after.isoformat(), in_words(notice.svid.not_after - now)
            text = "the SVID %s from %s ends at %s, in %s, and no renewal has come%s; %s"
            _LOG.warning(text, notice.svid.id, self._origin, end, left, why, self._remedy)

    @contextmanager
    def _heard(self) -> Generator[asyncio.Event]:
        """An event of the running loop that each change sets, on whichever thread it is made."""
        loop, changed, process = asyncio.get_running_loop(), asyncio.Event(), os.getpid()

        def tell() -> None:
            # A forked child has a copy of this subscription, and shares the loop's wake-up pipe.
            if os.getpid() == process:
                with suppress(RuntimeError):  # the loop was closed
                    loop.call_soon_threadsafe(changed.set)

        end = self.subscribe(tell)
        try:
            yield changed
        finally:
            end()


_SOURCES: weakref.WeakSet[Source] = weakref.WeakSet()


def _after_fork() -> None:
    for source in _SOURCES:
        source._after_fork()  # noqa: SLF001  # of this module


os.register_at_fork(after_in_child=_after_fork)


def _content(context: X509Context) -> tuple[object, ...]:
    return context.svids, frozenset(context.bundles)


def _because(trouble: str | None) -> str:
    return f" ({trouble})" if trouble else ""
