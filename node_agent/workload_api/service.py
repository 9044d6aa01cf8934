"""The X.509 profile of the SPIFFE Workload API (Workload Endpoint 3 to 6, Workload API 4 and 5).

Each stream is the whole state at once, and again after each change that this caller can see. A caller without an
identity is refused with PermissionDenied, also in mid-stream: its client drops what it holds then (WA-14). One whose
first SVID is still being made waits. Why somebody is refused is in our log; the caller learns the standard's words.

This API has no acknowledgement. A message counts as taken once it is written, for gRPC writes no more than the caller's
flow control has room for: the stream of one that does not read comes to a halt and lags from then on.

The JWT and WIT profiles are not served: their methods say so, with UNIMPLEMENTED (WA-02).
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from typing import NoReturn, TypeVar

import structlog
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from istio_auth.bundle import BundleSet
from istio_auth.door import UnixCaller
from istio_auth.errors import IstioAuthError, MalformedError, NotAuthorized, NotReady, UnknownMethod
from istio_auth.proto import workload_api_pb2 as messages
from istio_auth.rpc.method import Call, Method, Service
from istio_auth.spiffe_id import TrustDomain
from istio_auth.subscribers import Subscribers
from node_agent.attest import WorkloadAttestor, attest_all
from node_agent.metrics import Metrics
from node_agent.sync import Consumers
from node_agent.workload_api.responses import Renderer
from node_agent.workloads.cache import WorkloadCache
from node_agent.workloads.entitlement import Entitlement

SERVICE = "SpiffeWorkloadAPI"
_SECURITY_HEADER = "workload.spiffe.io"
_MAX_REQUEST = 16 << 10  # of these methods all are empty
_NOT_SERVED = {
    "FetchJWTSVID": "JWT-SVIDs",
    "FetchJWTBundles": "JWT-SVIDs",
    "ValidateJWTSVID": "JWT-SVIDs",
    "FetchWITSVID": "WIT-SVIDs",
    "FetchWITBundles": "WIT-SVIDs",
}
_Response = TypeVar("_Response", bound=Message)
log = structlog.get_logger()


class WorkloadAPI:
    """The service.

    Args:
        cache: what the workloads hold.
        attestors: look at callers.
        registrations_missing: why nobody is known yet; None once registrations are there.
        metrics: counts.
    """

    def __init__(
        self,
        cache: WorkloadCache,
        *,
        attestors: Iterable[WorkloadAttestor],
        registrations_missing: Callable[[], str | None],
        metrics: Metrics,
    ) -> None:
        self._cache, self._attestors, self._metrics = cache, tuple(attestors), metrics
        self._registrations_missing = registrations_missing
        self._render = Renderer()
        self._streams: set[Stream] = set()
        self._subscribers = Subscribers()
        cache.subscribe(lambda: self._render.keep(self._cache.snapshot.held))

    def service(self) -> Service:
        """What a server serves."""
        svids = Method.stream(
            self._svids, messages.X509SVIDRequest, messages.X509SVIDResponse, max_request_bytes=_MAX_REQUEST
        )
        bundles = Method.stream(
            self._bundles, messages.X509BundlesRequest, messages.X509BundlesResponse, max_request_bytes=_MAX_REQUEST
        )
        others = {name: _not_served(profile) for name, profile in _NOT_SERVED.items()}
        return Service(SERVICE, {"FetchX509SVID": svids, "FetchX509Bundles": bundles, **others})

    def subscribe(self, changed: Callable[[], None]) -> None:
        """Call `changed` whenever `consumers` may say something else, for as long as we run."""
        self._subscribers.add(changed)

    def streams(self) -> frozenset[Stream]:
        """Those that are open."""
        return frozenset(self._streams)

    def consumers(self) -> Consumers:
        """Who is served bundles, and who of them has taken the present ones."""
        served = [stream for stream in self._streams if stream.sent is not None]
        behind = sorted(stream.name() for stream in served if stream.sent is not self._cache.snapshot.bundles)
        return Consumers.of(len(served), behind)

    def _svids(
        self, requests: AsyncIterator[messages.X509SVIDRequest], call: Call
    ) -> AsyncGenerator[messages.X509SVIDResponse]:
        def render(entitled: Entitlement) -> messages.X509SVIDResponse | None:
            response = self._render.svids(entitled.context, entitled.registrations)
            return response if response.svids else None

        return self._stream("FetchX509SVID", requests, call, render)

    def _bundles(
        self, requests: AsyncIterator[messages.X509BundlesRequest], call: Call
    ) -> AsyncGenerator[messages.X509BundlesResponse]:
        return self._stream(
            "FetchX509Bundles", requests, call, lambda entitled: self._render.bundles(entitled.context.bundles)
        )

    async def _stream(
        self,
        method: str,
        requests: AsyncIterator[Message],
        call: Call,
        render: Callable[[Entitlement], _Response | None],
    ) -> AsyncGenerator[_Response]:
        """The present state, and each one after it that looks different from here."""
        check_security_header(call)
        if await anext(requests, None) is None:
            raise MalformedError("the call ended without a request", public="there is no request")
        stream = await self._begun(method, call)
        changed = asyncio.Event()
        end = self._cache.subscribe(changed.set)
        self._streams.add(stream)
        try:
            while True:
                changed.clear()
                self._require_identity(stream)
                bundles = stream.entitled.context.bundles
                if (response := render(stream.entitled)) is not None and stream.is_new(response):
                    self._metrics.workload_api_responses.inc()
                    yield response
                if response is not None:
                    stream.written(bundles)
                    self._subscribers.tell()
                await changed.wait()
        finally:
            end()
            self._streams.discard(stream)
            self._subscribers.tell()

    async def _begun(self, method: str, call: Call) -> Stream:
        """The stream of a caller, once that was looked at.

        Raises:
            NotAuthorized: it is no process of this machine, or not the one it was.
            NotReady: who it is can not be said now.
        """
        if not isinstance(call.caller, UnixCaller):
            raise _no_identity(f"{call.caller} is no process of this machine")
        try:
            selectors = await attest_all(self._attestors, call.caller)
        except NotReady:
            raise  # who it is can not be said now: it shall come again, and keep what it holds
        except IstioAuthError as error:
            raise _no_identity(str(error)) from error
        return Stream(method, call.caller, Entitlement(selectors, self._cache))

    def _require_identity(self, stream: Stream) -> None:
        if stream.entitled.ids:
            return
        if (missing := self._registrations_missing()) is not None:
            raise NotReady(missing, public="the agent can not serve anybody yet")
        self._metrics.callers_unknown.inc()
        log.warning(
            "no registration fits this caller; it is refused", caller=str(stream.caller), **stream.entitled.explained()
        )
        raise _no_identity(f"no registration fits {stream.caller}")


class Stream:
    """One stream: whose it is, and what was sent on it.

    Attributes:
        method: what it called.
        caller: the process at the other end.
        entitled: what it may have.
        sent: the bundles that the last message spoke of; None before the first.
        version: stands for the content of the last message that was written; empty before the first.
    """

    def __init__(self, method: str, caller: UnixCaller, entitled: Entitlement) -> None:
        self.method = method
        self.caller, self.entitled = caller, entitled
        self.sent: BundleSet | None = None
        self.version = ""
        self._digest = b""

    def is_new(self, response: Message) -> bool:
        """Whether it differs from the last one; it is the last one now. No second copy of a key is kept for that."""
        before, self._digest = self._digest, hashlib.sha256(response.SerializeToString(deterministic=True)).digest()
        return self._digest != before

    def written(self, bundles: BundleSet) -> None:
        """The caller has taken the last message, which spoke of these bundles."""
        self.sent, self.version = bundles, self._digest[:8].hex()

    def sequence(self, trust_domain: TrustDomain) -> int | None:
        """Of the bundle of a trust domain that the caller has taken; None if it has none, or that has no sequence."""
        return next((each.sequence for each in self.sent or () if each.trust_domain == trust_domain), None)

    def name(self) -> str:
        """How to call it where it is one of many."""
        ids, caller = self.entitled.ids, self.caller
        return f"{ids[0] if ids else caller} (pid {caller.pid})"


def check_security_header(call: Call) -> None:
    """Make sure that no web page could have sent this (WE-05).

    Raises:
        MalformedError: the header is not there, once, with the value that the standard names.
    """
    if call.metadata.get(_SECURITY_HEADER, ()) != ("true",):
        message = "security header missing from request"
        raise MalformedError(f"{message}: {_SECURITY_HEADER} must be true, once", public=message)


def _not_served(profile: str) -> Method:
    """A method of a profile that is not served: clients that only wait and try again log at least why."""

    def refuse() -> NoReturn:
        words = f"{profile} are not served by this agent"
        raise UnknownMethod(words, public=words)

    async def stream(_requests: AsyncIterator[Empty], call: Call) -> AsyncGenerator[Empty]:
        check_security_header(call)
        yield refuse()

    return Method.stream(stream, Empty, Empty)


def _no_identity(message: str) -> NotAuthorized:
    return NotAuthorized(message, public="no identity issued")
