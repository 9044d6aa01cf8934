"""WorkloadAPISource: SVIDs and bundles from the SPIFFE Workload API, for as long as the process lives.

One thread keeps the stream open (see `following`, and `istio_auth.workload_api.backoff` for the waits), so blocking and
asyncio code use the source in the same way. An answer of the API replaces everything that was held (WA-04, WA-05). If
the API says that this workload has no identity (any more), nothing is served from that moment (WA-14). If it does not
answer, or its answer breaks the standard, the last good SVID is served until its end. In a forked child the source
starts again at its first use there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TypeAlias

from istio_auth.clock import Clock
from istio_auth.errors import IstioAuthError, MissingError, NotAuthorized
from istio_auth.rpc.forking import Forked
from istio_auth.sources.following import Following
from istio_auth.sources.source import Source
from istio_auth.svid import X509SVID
from istio_auth.workload_api.address import chosen_address
from istio_auth.workload_api.blocking import BlockingWorkloadAPIClient
from istio_auth.workload_api.methods import TIMEOUT
from istio_auth.x509_source import X509Context

Pick: TypeAlias = Callable[[Sequence[X509SVID]], X509SVID]

_REMEDY = "see whether the agent runs, its socket is there for this process, and this workload is registered"


class WorkloadAPISource(Source):
    """Follows the Workload API. Opening it waits for nothing: see `wait_until_ready` and `ready`.

    Args:
        address: where the API listens, as `unix:///run/spiffe/agent.sock`; by default what `SPIFFE_ENDPOINT_SOCKET`
            says. A socket that is not there yet is waited for.
        pick: which SVID is the default one: the one with this hint, or the one that this function returns; by default
            the first. If there is no such SVID, nothing is served: `x509_context` raises `MissingError`.
        timeout: how long the API may take to answer before it is asked again.
        clock: tells when an SVID has ended; the machine's by default.

    Raises:
        ConfigurationError: the address is malformed, or there is none.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        pick: str | Pick | None = None,
        timeout: timedelta = TIMEOUT,
        clock: Clock | None = None,
    ) -> None:
        self._address = chosen_address(address, os.environ)
        super().__init__(f"the Workload API at {self._address}", _REMEDY, clock=clock)
        self._pick = pick
        self._client = BlockingWorkloadAPIClient(self._address, timeout=timeout)
        watch = self._client.watch_x509_context
        self._following = Following(self, self._client, watch, take=self._take, failed=self._failed)
        self._following.start()

    def close(self) -> None:
        """End the connection and the thread, and serve nothing any more."""
        super().close()
        self._following.stop()

    def _resume(self) -> None:
        if not self._state.closed:
            self._following.start()

    def _take(self, context: X509Context) -> None:
        try:
            default = self._default_of(context.svids)
        except IstioAuthError as error:
            self._lose(error)  # the answer replaces what was held before, even if we can not use it
            return
        others = tuple(svid for svid in context.svids if svid is not default)
        self._offer(X509Context((default, *others), context.bundles))

    def _default_of(self, svids: Sequence[X509SVID]) -> X509SVID:
        if self._pick is None:
            return svids[0]
        if not isinstance(self._pick, str):
            return self._chosen(self._pick, svids)
        for svid in svids:
            if svid.hint == self._pick:
                return svid
        there = ", ".join(repr(svid.hint) for svid in svids)
        raise MissingError(f"no SVID of this workload has the hint {self._pick!r}; there are {there}")

    def _chosen(self, pick: Pick, svids: Sequence[X509SVID]) -> X509SVID:
        try:
            chosen = pick(svids)
        except Exception as error:  # somebody else's function
            raise MissingError(f"the function that picks an SVID failed: {type(error).__name__}: {error}") from error
        if not any(chosen is svid for svid in svids):
            raise MissingError("the function that picks an SVID gave none of those that it was given")
        return chosen

    def _failed(self, error: Exception) -> None:
        if isinstance(error, NotAuthorized):
            self._lose(NotAuthorized(f"the Workload API knows no identity of this workload: {error}"))
        elif isinstance(error, Forked):
            self._lose(error)  # in this process what is held would never be replaced
        else:
            self._trouble(error)
        self._look()
