"""Sync: one stream for the life of an agent. The CA sends bundles and registrations, the agent says what it holds.

The agent speaks first and says what it holds. It is sent what it lacks, and then every change as it happens. The first
answer comes even if it lacks nothing: so the agent knows that the CA listens. Only an agent that is attested by its
certificate may sync, and only as long as the certificate is valid and the agent is not evicted.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import structlog

from ca.admission import Admission
from ca.agents.agent import Agents, agent_name
from ca.attest import Attested
from ca.authority.authority import Authority
from ca.peer_certificate import METHOD, proven_until
from ca.registrations.table import RegistrationDelta, Registrations
from ca.service.caller import attested_caller, tls_caller
from ca.service.sync_book import Acknowledgement, SyncBook
from istio_auth.bundle import TrustBundle
from istio_auth.clock import Clock
from istio_auth.errors import MalformedError, NotAuthorized, NotReady
from istio_auth.pem import write_der
from istio_auth.proto import node_pb2
from istio_auth.registration import Registration
from istio_auth.rpc.method import Call

FIRST_WORD_WITHIN = timedelta(seconds=30)
_MAX_LAGGARDS = 100
_MAX_NAME = 256
_log = structlog.get_logger()


@dataclass(slots=True)
class _Session:
    """One stream.

    Args:
        agent: whose it is.
        ends: when its certificate ends.
        news: set when there may be something to send, or a reason to end the stream.
        held: the bundle that the agent was sent last, or held already; None before the first answer.
        sequence: the sequence of the bundle that the agent says it holds.
        epoch: the epoch of the revision that it holds.
        revision: the revision of the registrations that it holds.
        answered: whether it was sent anything yet.
        over: whether the agent has ended its side.
    """

    agent: str
    ends: datetime
    news: asyncio.Event = field(default_factory=asyncio.Event)
    held: TrustBundle | None = None
    sequence: int = 0
    epoch: str = ""
    revision: int = 0
    answered: bool = False
    over: bool = False


class Sync:
    """Serves the streams.

    Args:
        admission: attests callers.
        authority: whose bundle is sent.
        registrations: sent to each agent, as far as they are for it.
        agents: tells who is welcome.
        book: keeps what the agents say.
        clock: tells the time.
    """

    def __init__(
        self,
        *,
        admission: Admission,
        authority: Authority,
        registrations: Registrations,
        agents: Agents,
        book: SyncBook,
        clock: Clock,
    ) -> None:
        self._admission = admission
        self._authority = authority
        self._registrations = registrations
        self._agents = agents
        self._book = book
        self._clock = clock

    async def stream(
        self, requests: AsyncIterator[node_pb2.SyncRequest], call: Call
    ) -> AsyncGenerator[node_pb2.SyncResponse]:
        """The answers of one stream.

        Raises:
            NotAuthenticated, NotAuthorized: the caller is not proven, no agent, or evicted, perhaps meanwhile.
            MalformedError: it said nothing in time.
            Exhausted: it has too many streams open.
            NotReady: its certificate ended, and it must come again with a new one; or nobody can tell now whether it
                is welcome and what is registered for it.
        """
        attested = await attested_caller(self._admission, call)
        session = _Session(_agent(attested), proven_until(tls_caller(self._admission, call).chain))
        self._book.opened(session.agent, self._clock.now())
        with contextlib.ExitStack() as open_things:
            open_things.callback(self._book.closed, session.agent)
            await self._first_word(session, requests)
            self._subscribe(session, open_things)
            reader = asyncio.create_task(self._listen(session, requests))
            open_things.callback(_end, reader)
            while not session.over:
                session.news.clear()
                self._check(session)
                if (response := self._due(session)) is not None:
                    yield response
                    continue
                await self._wait(session)
            await reader  # if it failed, so does the stream

    def _subscribe(self, session: _Session, open_things: contextlib.ExitStack) -> None:
        """Have every change set `news`, whichever thread it happens on."""
        loop = asyncio.get_running_loop()

        def tell() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is listening any more
                loop.call_soon_threadsafe(session.news.set)

        open_things.callback(self._registrations.follow(session.agent, tell))
        for source in (self._authority, self._agents):
            open_things.callback(source.subscribe(tell))

    async def _first_word(self, session: _Session, requests: AsyncIterator[node_pb2.SyncRequest]) -> None:
        try:
            async with asyncio.timeout(FIRST_WORD_WITHIN.total_seconds()):
                first = await anext(requests)
        except (TimeoutError, StopAsyncIteration) as error:
            raise MalformedError(f"agent {session.agent} opened a stream and said nothing", public="no word") from error
        session.epoch, session.revision = first.epoch[:_MAX_NAME], first.revision
        self._heard(session, first)

    async def _listen(self, session: _Session, requests: AsyncIterator[node_pb2.SyncRequest]) -> None:
        try:
            async for request in requests:
                self._heard(session, request)
        finally:
            session.over = True
            session.news.set()

    def _heard(self, session: _Session, request: node_pb2.SyncRequest) -> None:
        session.sequence = request.bundle_sequence
        word = Acknowledgement(
            at=self._clock.now(),
            sequence=request.bundle_sequence,
            consumers=request.consumers,
            consumers_current=min(request.consumers_current, request.consumers),
            laggards=tuple(name[:_MAX_NAME] for name in request.laggards[:_MAX_LAGGARDS]),
            version=request.agent_version[:_MAX_NAME],
        )
        self._book.heard(session.agent, word)

    def _check(self, session: _Session) -> None:
        try:
            self._agents.check_welcome(session.agent)
        except NotAuthorized as error:
            self._book.forget(session.agent)
            _log.warning("sync ended", agent=session.agent, reason=str(error))
            raise
        if self._clock.now() > session.ends:
            raise NotReady(f"the certificate of agent {session.agent} ended during its stream")

    def _due(self, session: _Session) -> node_pb2.SyncResponse | None:
        """What the agent lacks, and holds from now on; None if it lacks nothing and was answered before."""
        response, bundle = node_pb2.SyncResponse(), self._authority.bundle
        history = self._registrations.history_of(session.agent)
        if bundle is not session.held and (session.held is not None or bundle.sequence != session.sequence):
            response.bundles.append(_bundle(bundle))
        session.held = bundle
        delta = history.delta(session.agent, epoch=session.epoch, revision=session.revision)
        if delta is not None:
            response.registrations.CopyFrom(_delta(delta, history.epoch))
            session.epoch, session.revision = history.epoch, delta.to_revision
        is_first, session.answered = not session.answered, True
        return response if is_first or delta is not None or response.bundles else None

    async def _wait(self, session: _Session) -> None:
        left = (session.ends - self._clock.now()).total_seconds()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(left, 0) + 1):
                await session.news.wait()


def _end(reader: asyncio.Task[None]) -> None:
    reader.add_done_callback(lambda task: task.cancelled() or task.exception())  # nobody else asks for it any more
    reader.cancel()


def _agent(attested: Attested) -> str:
    name = agent_name(attested.spiffe_id)
    if name is None or attested.method != METHOD:
        raise NotAuthorized(f"{attested.spiffe_id}, proven by {attested.method}, is no agent with a certificate")
    return name


def _bundle(bundle: TrustBundle) -> node_pb2.Bundle:
    return node_pb2.Bundle(
        trust_domain=bundle.trust_domain.name,
        x509_authorities=map(write_der, bundle.x509_authorities),
        sequence=bundle.sequence or 0,
        refresh_hint_seconds=0 if bundle.refresh_hint is None else int(bundle.refresh_hint.total_seconds()),
    )


def _delta(delta: RegistrationDelta, epoch: str) -> node_pb2.RegistrationDelta:
    return node_pb2.RegistrationDelta(
        epoch=epoch,
        from_revision=delta.from_revision,
        to_revision=delta.to_revision,
        put=_registrations(delta.put),
        removed=delta.removed,
    )


def _registrations(put: Mapping[str, Registration]) -> list[node_pb2.Registration]:
    return [
        node_pb2.Registration(
            key=key,
            spiffe_id=str(registration.spiffe_id),
            selectors=sorted(map(str, registration.selectors)),
            ttl_seconds=0 if registration.ttl is None else int(registration.ttl.total_seconds()),
            dns_names=registration.dns_names,
            hint=registration.hint,
        )
        for key, registration in put.items()
    ]
