"""Source: the base of all sources of X509-SVIDs: one snapshot, which is replaced whole.

A subclass calls `_offer` or `_hold` (a new snapshot), `_trouble` (the last good one stays) or `_lose` (nothing is
served any more), from any thread. If an SVID is not renewed, the log warns before it ends, and it is not served after
its end. This needs no thread and no timer: each use looks at the clock.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from datetime import datetime, timedelta

from istio_auth.bundle import TrustBundle
from istio_auth.clock import Clock, in_words
from istio_auth.errors import IstioAuthError, MissingError, NotReady
from istio_auth.sources.expiry import Notice
from istio_auth.sources.followed import Followed
from istio_auth.sources.state import State
from istio_auth.spiffe_id import SpiffeID, TrustDomain
from istio_auth.svid import X509SVID
from istio_auth.system_clock import SystemClock
from istio_auth.x509_source import X509Context

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SourceStatus:
    """The status of a source at one moment.

    Args:
        ready: whether it serves a snapshot.
        spiffe_id: the SPIFFE ID of the default SVID; None while none is held.
        age: how long the snapshot has been held; None while none is.
        remaining: how long the default SVID is still valid, never negative; None while none is held.
        trouble: what is wrong at present, or why nothing is served; None if all is well.
        updates: how many snapshots were put in place, including the first.
    """

    ready: bool
    spiffe_id: SpiffeID | None
    age: timedelta | None
    remaining: timedelta | None
    trouble: str | None
    updates: int


class Source(Followed[State]):
    """The base of all sources of X509-SVIDs: an `X509Source` that can be waited for, followed, and asked for status.

    Args:
        origin: where its content comes from, as messages say it: `the files in /etc/certs`.
        remedy: what a person can do if nothing arrives.
        clock: tells the age of what is held, and when it ends; the machine's by default.
        serve_ended: whether an SVID is served after its end too (a peer will refuse it).
    """

    def __init__(self, origin: str, remedy: str, *, clock: Clock | None = None, serve_ended: bool = False) -> None:
        super().__init__(origin, State())
        self._remedy = remedy
        self._clock = clock or SystemClock()
        self._serve_ended = serve_ended

    def x509_context(self) -> X509Context:
        """The present snapshot; cheap, callable from any thread.

        Raises:
            NotReady: nothing has arrived yet, the default SVID has ended, or the source is closed.
            IstioAuthError: the source has lost what it held, for this reason; `NotAuthorized` if the Workload API says
                that this workload has no identity.
        """
        state, now = self._used()
        if state.context is None or not state.serves(now):
            raise self._refusal(state)
        return state.context

    def svid(self, hint: str | None = None) -> X509SVID:
        """The default SVID, or the first with this hint (see `x509_context`).

        Raises:
            MissingError: no SVID has this hint.
            NotReady: the SVID with this hint has ended, or no SVID is held.
        """
        context = self.x509_context()
        if hint is None:
            return context.svid
        for svid in context.svids:
            if svid.hint == hint:
                if not self._serve_ended and self._clock.now() >= svid.not_after:
                    raise NotReady(self._ended(svid, self._state))
                return svid
        hints = ", ".join(repr(svid.hint) for svid in context.svids)
        raise MissingError(f"no SVID from {self._origin} has the hint {hint!r}; the hints are: {hints or 'none'}")

    def bundle(self, trust_domain: TrustDomain) -> TrustBundle:
        """The bundle of a trust domain (see `x509_context`).

        Raises:
            VerificationError: that trust domain is not trusted.
        """
        return self.x509_context().bundle(trust_domain)

    async def updates(self) -> AsyncGenerator[X509Context]:
        """The present snapshot, then each that takes its place, until the source is closed.

        A slow consumer misses snapshots that were replaced meanwhile, and gets the latest.
        """
        self._used()
        last = None
        with self._changes.heard() as changed:
            while not (state := self._state).closed:
                changed.clear()
                if state.context is None or state.context is last or not state.serves(self._clock.now()):
                    await changed.wait()
                else:
                    last = state.context
                    yield last

    def status(self) -> SourceStatus:
        """The present status of the source; cheap, callable from any thread."""
        state, now = self._used()
        svid, serves = state.default, state.serves(now)
        return SourceStatus(
            ready=serves,
            spiffe_id=None if svid is None else svid.id,
            age=None if state.since is None else max(now - state.since, timedelta()),
            remaining=None if svid is None else max(svid.not_after - now, timedelta()),
            trouble=state.trouble if serves else self._why_not(state),
            updates=state.updates,
        )

    def close(self) -> None:
        """Serve nothing any more, for good; those who wait get an error. May be called again."""
        self._replace(State.closing)

    # For subclasses ------------------------------------------------------------------------------------------------

    def _hold(self, context: X509Context, *, trouble: Exception | None = None) -> None:
        """Replace the snapshot, and tell the subscribers. `trouble` replaces the trouble of before."""
        now, ends = self._clock.now(), not self._serve_ended
        self._replace(lambda state: state.holding(context, now, ends=ends, trouble=trouble))

    def _offer(self, context: X509Context, *, trouble: Exception | None = None) -> None:
        """As `_hold`; but if the same content is held already, that object stays, and only the trouble is replaced."""
        if self._state.says(context):
            self._replace(lambda state: state.troubled(trouble))
        else:
            self._hold(context, trouble=trouble)

    def _lose(self, reason: IstioAuthError) -> None:
        """Serve nothing until the next snapshot: `x509_context` raises this reason."""
        self._replace(lambda state: state.losing(reason))

    def _trouble(self, error: Exception) -> None:
        """Keep the last good snapshot; this error is shown by `status`, and logged if it is new."""
        self._replace(lambda state: state.troubled(error))

    def _look(self) -> None:
        """Log the warnings about SVIDs that are due. To be called now and then by a source's own thread."""
        self._say_what_is_due(self._clock.now())

    # ---------------------------------------------------------------------------------------------------------------

    def _used(self) -> tuple[State, datetime]:
        self._use()
        now = self._clock.now()
        self._say_what_is_due(now)
        return self._state, now

    def _serves(self) -> bool:
        return self._state.serves(self._clock.now())

    def _refusal(self, state: State) -> IstioAuthError:
        # A copy: one error raised by several threads would collect all their tracebacks.
        return NotReady(self._why_not(state)) if state.lost is None else copy.copy(state.lost)

    def _why_not(self, state: State) -> str:
        if state.closed:
            return f"the source of {self._origin} is closed: open another one"
        if state.default is not None:
            return self._ended(state.default, state)
        what = "nothing is served any more from" if state.lost else "no SVID has arrived yet from"
        return f"{what} {self._origin}{_because(state)}; {self._remedy}"

    def _ended(self, svid: X509SVID, state: State) -> str:
        ended = f"the SVID {svid.id} from {self._origin} has ended at {svid.not_after.isoformat()}"
        return f"{ended} and was not renewed{_because(state)}; {self._remedy}"

    def _say_what_is_due(self, now: datetime) -> None:
        pending = self._state.pending
        if not pending or now < pending[0].at:
            return
        with self._changes.alone():
            said, self._state = self._state.told(now)
        for notice in said:
            self._say(notice, now)

    def _say(self, notice: Notice, now: datetime) -> None:
        svid, state = notice.svid, self._state
        if notice.ended:
            _LOG.error("%s", self._ended(svid, state))
        else:
            left, end = in_words(svid.not_after - now), svid.not_after.isoformat()
            text = "the SVID %s from %s ends at %s, in %s, and no renewal has come%s; %s"
            _LOG.warning(text, svid.id, self._origin, end, left, _because(state), self._remedy)


def _because(state: State) -> str:
    return f" ({state.trouble})" if state.trouble else ""
