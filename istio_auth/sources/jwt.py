"""JWTSource: JWT-SVIDs and JWT bundles from the SPIFFE Workload API, for as long as the process lives.

JWT-SVIDs are fetched when they are asked for, and kept until half their life (see `jwt_cache`). Bundles are followed
by one thread: an answer of the API replaces everything that was held (WA-04, WA-05). If the API says that this workload
has no identity (any more), nothing is served from that moment, not even tokens that are on hand (WA-14). If it does not
answer, or its answer breaks the standard, the last good bundles stay. When the keys of a trust domain change, its
tokens are fetched again at their next use. In a forked child the source starts again at its first use there.
"""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from istio_auth.clock import Clock
from istio_auth.errors import IstioAuthError, MissingError, NotAuthorized, NotReady
from istio_auth.jwt_bundle import JWTBundle, JWTBundleSet
from istio_auth.jwt_svid import JWTSVID, validate_jwt_svid
from istio_auth.rpc.forking import Forked
from istio_auth.sources.followed import Followed
from istio_auth.sources.following import Following
from istio_auth.sources.jwt_cache import JWTSVIDCache, Wanted
from istio_auth.spiffe_id import SpiffeID, TrustDomain
from istio_auth.system_clock import SystemClock
from istio_auth.workload_api.blocking import BlockingWorkloadAPIClient
from istio_auth.workload_api.methods import TIMEOUT

_REMEDY = "see whether the agent runs, its socket is there for this process, and this workload is registered"


@dataclass(frozen=True, slots=True)
class JWTSourceStatus:
    """The status of a `JWTSource` at one moment.

    Args:
        ready: whether it has bundles to validate with.
        age: how long the present bundles have been held; None while none are.
        trouble: what is wrong at present; None if nothing is.
        updates: how often new bundles came, including the first.
    """

    ready: bool
    age: timedelta | None
    trouble: str | None
    updates: int


@dataclass(frozen=True, slots=True)
class _State:
    bundles: JWTBundleSet | None = None
    since: datetime | None = None
    lost: IstioAuthError | None = None
    trouble: str | None = None
    updates: int = 0
    closed: bool = False

    @property
    def held(self) -> JWTBundleSet | None:
        """The bundles, under the name that all sources use."""
        return self.bundles


class JWTSource(Followed[_State]):
    """Fetches JWT-SVIDs and validates those of others. A `JWTBundleSource`; usable from any thread and event loop.

    Opening it waits for nothing: see `wait_until_ready` and `ready`, which wait for the bundles.

    Args:
        address: where the API listens, as `unix:///run/spiffe/agent.sock`; by default what `SPIFFE_ENDPOINT_SOCKET`
            says. A socket that is not there yet is waited for.
        timeout: how long the API may take to answer.
        clock: tells when a token is valid; the machine's by default.

    Raises:
        ConfigurationError: the address is malformed, or there is none.
    """

    def __init__(self, address: str | None = None, *, timeout: timedelta = TIMEOUT, clock: Clock | None = None) -> None:
        self._client = BlockingWorkloadAPIClient(address, timeout=timeout)
        super().__init__(f"the Workload API at {self._client.address}", _State())
        self._clock = clock or SystemClock()
        self._cache = JWTSVIDCache(functools.partial(_ask, self._client), self._clock)
        watch = self._client.watch_jwt_bundles
        self._following = Following(self, self._client, watch, take=self._take, failed=self._failed)
        self._following.start()

    def fetch(self, *audiences: str, spiffe_id: SpiffeID | None = None, hint: str = "") -> JWTSVID:
        """A JWT-SVID of this workload, blocking while it is fetched. Not for an event loop: see `fetch_async`.

        Args:
            audiences: whom the token is for; at least one, best exactly one.
            spiffe_id: the identity; by default the first one of this workload.
            hint: if not empty, the hint of the identity.

        Raises:
            ConfigurationError: no audience was named.
            NotAuthorized: the workload has no identity, or not this one.
            MissingError: no identity has this hint.
            NotReady: no valid one is on hand, and the API did not answer; or the source is closed.
            IstioAuthError: anything else.
        """
        self._use()
        return self._cache.get(Wanted(tuple(sorted(set(audiences))), spiffe_id, hint))

    async def fetch_async(self, *audiences: str, spiffe_id: SpiffeID | None = None, hint: str = "") -> JWTSVID:
        """A JWT-SVID of this workload, without blocking the event loop (see `fetch`)."""
        self._use()
        return await self._cache.get_async(Wanted(tuple(sorted(set(audiences))), spiffe_id, hint))

    def validate(self, token: str, audience: str) -> JWTSVID:
        """Validate a JWT-SVID that somebody showed us.

        Args:
            token: the token.
            audience: who we are; the token must be for us.

        Raises:
            TokenRefused: it proves nothing; `fault` says why.
            ConfigurationError: the audience is empty.
            IstioAuthError: there are no bundles to validate with (see `bundles`).
        """
        return validate_jwt_svid(token, self.bundles(), audience=audience, now=self._clock.now())

    def bundles(self) -> JWTBundleSet:
        """The present bundles, as one snapshot; cheap, callable from any thread.

        Raises:
            NotReady: none have arrived yet, the source is closed, or this is a forked child that can not use gRPC.
            NotAuthorized: the Workload API says that this workload has no identity.
        """
        state = self._use()
        if state.bundles is None:
            raise self._refusal(state)
        return state.bundles

    def bundle(self, trust_domain: TrustDomain) -> JWTBundle:
        """The JWT bundle of a trust domain (see `bundles`).

        Raises:
            TokenRefused: that trust domain is not trusted.
        """
        return self.bundles().bundle(trust_domain)

    def status(self) -> JWTSourceStatus:
        """The present status of the source; cheap, callable from any thread."""
        state = self._use()
        age = None if state.since is None else max(self._clock.now() - state.since, timedelta())
        return JWTSourceStatus(state.bundles is not None, age, state.trouble, state.updates)

    def close(self) -> None:
        """Serve nothing any more, for good; those who wait get an error. May be called again."""
        self._replace(lambda state: _State(updates=state.updates, closed=True))
        self._cache.forget()
        self._following.stop()

    def _after_fork(self) -> None:
        super()._after_fork()
        self._cache.after_fork()

    def _resume(self) -> None:
        if not self._state.closed:
            self._following.start()

    def _take(self, bundles: JWTBundleSet) -> None:
        before, now = self._state.bundles, self._clock.now()
        if before is None or _by_trust_domain(before) != _by_trust_domain(bundles):
            # First the tokens: a caller that has seen the new bundles must not get a token of before.
            if changed := changed_between(before or JWTBundleSet(), bundles):
                self._cache.renew(changed)
            self._replace(lambda state: _State(bundles, now, updates=state.updates + 1))
        else:
            self._replace(lambda state: replace(state, trouble=None))

    def _failed(self, error: Exception) -> None:
        if isinstance(error, NotAuthorized | Forked):  # a forked child would never replace what it holds
            # A new error: the traceback of the old one would keep objects alive.
            refused = f"the Workload API knows no identity of this workload: {error}"
            reason = Forked(str(error)) if isinstance(error, Forked) else NotAuthorized(refused)
            self._cache.forget()
            self._replace(lambda state: _State(lost=reason, trouble=str(reason), updates=state.updates))
        else:
            told = str(error) or type(error).__name__
            self._replace(lambda state: replace(state, trouble=told))

    def _serves(self) -> bool:
        return self._state.bundles is not None

    def _why_not(self, state: _State) -> str:
        return str(self._refusal(state))

    def _refusal(self, state: _State) -> IstioAuthError:
        if state.closed:
            return NotReady(f"the source of {self._origin} is closed: open another one")
        if state.lost is not None:
            return copy.copy(state.lost)  # one error raised by several threads would gather all their tracebacks
        because = f" ({state.trouble})" if state.trouble else ""
        return NotReady(f"no JWT bundles have arrived yet from {self._origin}{because}; {_REMEDY}")


def _ask(client: BlockingWorkloadAPIClient, wanted: Wanted) -> JWTSVID:
    svids = client.fetch_jwt_svids(wanted.audiences, spiffe_id=wanted.spiffe_id)
    for svid in svids:
        if wanted.hint in ("", svid.hint):
            return svid
    hints = ", ".join(repr(svid.hint) for svid in svids)
    raise MissingError(f"no JWT-SVID of this workload has the hint {wanted.hint!r}; the hints are: {hints}")


def changed_between(before: JWTBundleSet, after: JWTBundleSet) -> frozenset[TrustDomain]:
    """The trust domains whose keys have changed, or are gone."""
    now = _by_trust_domain(after)
    return frozenset(bundle.trust_domain for bundle in before if now.get(bundle.trust_domain) != bundle)


def _by_trust_domain(bundles: JWTBundleSet) -> dict[TrustDomain, JWTBundle]:
    return {bundle.trust_domain: bundle for bundle in bundles}
