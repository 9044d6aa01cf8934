"""One published volume: its SVID, asked for with the pod's own token, and what the pod sees of it, kept as it is.

    published with a token -> SVID held -> written -> seen by the pod -> renewed around half of its life, written again

The token is the kubelet's latest and in memory only. While there is none that lives, after a restart or because the
kubelet brings none, what is held is served on, and renewal waits for the next republish. Each volume has a key, a
cache and loops of its own, so that what one pod lacks delays no other.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

import structlog

from istio_auth.clock import Clock
from istio_auth.errors import IstioAuthError, NotReady
from istio_auth.registration import Registration, Selector
from istio_auth.rotation import renewal_due
from istio_auth.spiffe_id import TrustDomain
from istio_auth.x509_source import X509Context
from node_agent.backoff import Backoff, comes_within
from node_agent.ca_client.istio_contract import IstioClient
from node_agent.ca_client.port import Outcome, SigningRequest
from node_agent.csi.attributes import Form
from node_agent.csi.folder import VolumeFolder
from node_agent.csi.pod_token import Token
from node_agent.csi.publication import Publication
from node_agent.csi.threads import done_in_a_thread
from node_agent.metrics import Metrics
from node_agent.sync import Consumers
from node_agent.trust import Trust
from node_agent.workloads.cache import Held, WorkloadCache
from node_agent.workloads.renewal import Renewals

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Means:
    """What every volume needs.

    Args:
        ca: where certificates come from, by Istio's contract and without a certificate of our own.
        trust: whom we trust.
        trust_domain: our own.
        clock: tells the time.
        metrics: counts.
        draw: gives a number in [0, 1).
    """

    ca: IstioClient
    trust: Trust
    trust_domain: TrustDomain
    clock: Clock
    metrics: Metrics
    draw: Callable[[], float] = random.random


class Volume:
    """A volume. For one event loop.

    Args:
        publication: what was asked for.
        folder: where it is kept.
        means: what it works with.

    Attributes:
        cache: the pod's SVID, and whom it trusts.
        trouble: why what the pod sees is not what is held; None if it is.
    """

    def __init__(self, publication: Publication, folder: VolumeFolder, means: Means) -> None:
        self.publication, self.folder = publication, folder
        self.cache = WorkloadCache(means.trust.bundles)
        self.cache.register(
            (
                Registration(
                    publication.spiffe_id, frozenset({Selector("socket", folder.key)}), publication.attributes.ttl
                ),
            )
        )
        self.trouble: str | None = None
        self._want = self.cache.snapshot.wanted[publication.spiffe_id]
        self._means = means
        self._token: Token | None = None
        self._renewals = Renewals(
            self.cache,
            _ByToken(self, means.ca),
            ready=self.has_token,
            clock=means.clock,
            metrics=means.metrics,
            draw=means.draw,
        )
        self._written: X509Context | None = None
        self._writing = asyncio.Lock()  # an older state must not come after a newer one
        self._running: asyncio.Task[None] | None = None
        self._end_of_trust = means.trust.subscribe(lambda: self.cache.trust(means.trust.bundles))

    @property
    def token(self) -> Token | None:
        """The kubelet's latest; None while it has brought none."""
        return self._token

    @property
    def held(self) -> Held | None:
        """What is held; None while there is nothing."""
        return self.cache.snapshot.held.get(self.publication.spiffe_id)

    @property
    def context(self) -> X509Context:
        """What the pod is to see."""
        return self.cache.snapshot.context_of([self.publication.spiffe_id])

    def has_token(self) -> bool:
        """Whether the CA can be asked."""
        return self._token is not None and self._token.ends > self._means.clock.now()

    def take(self, token: Token) -> None:
        """Use this token from now on.

        Raises:
            NotReady: it has ended.
        """
        if token.ends <= self._means.clock.now():
            message = f"the pod's token ended {token.ends:%F %T} UTC; the kubelet is to bring another"
            raise NotReady(message, public=message)
        self._token = token
        self._renewals.look_again()

    async def issued(self, within: float) -> None:
        """Have an SVID.

        Args:
            within: after how many seconds it is too late.

        Raises:
            NotReady: it is too late, or the CA refuses; the reason is told.
        """
        try:
            async with asyncio.timeout(within):
                await (self._until_held() if self._running else self._first())
        except TimeoutError:
            raise _no_certificate(f"{self._renewals.trouble or 'the CA does not answer'}, for {within:.0f} s") from None

    def restore(self) -> None:
        """Take what was kept. Blocks.

        Raises:
            IstioAuthError: what was kept is of no use any more.
        """
        if (svid := self.folder.kept(self.cache.snapshot.bundles, self._means.clock.now())) is not None:
            due = renewal_due(svid.not_before, svid.not_after, draw=self._means.draw())
            self.cache.put([Held(svid, self._want, due)])

    async def write(self) -> None:
        """Keep what is held, and show it to the pod.

        Raises:
            IstioAuthError: it can not be written; what was there stays.
        """
        async with self._writing:
            context = self.context
            if not context.svids or self._is_written(context):
                return
            await done_in_a_thread(lambda: self._write(context))
            self._written = context

    def start(self) -> None:
        """Renew and write from now on, until `end`."""
        self._running = asyncio.create_task(self._run(), name=f"volume {self.folder.key}")
        self._running.add_done_callback(self._ended)

    async def end(self) -> None:
        """Renew and write no more, and forget the pod's token and key."""
        self._end_of_trust()
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
            self._running = None
        self._token, self._written = None, None
        self.cache.register(())

    def consumers(self) -> Consumers:
        """Whether the files, if there are any, hold the present trust bundle."""
        if self.publication.attributes.form is not Form.FILES or self._written is None:
            return Consumers()
        domain = self._means.trust_domain
        behind = self._written.bundle(domain) is not self.context.bundle(domain)
        return Consumers.of(1, [f"volume of {self.publication.pod}"] if behind else [])

    def what_is_wrong(self) -> str | None:
        """What keeps it from being as it should."""
        if reason := self.trouble or self._refusal() or self._renewals.trouble:
            return reason
        due = self.held is None or self.held.due <= self._means.clock.now()
        return "waits for the kubelet to bring a token" if due and not self.has_token() else None

    def look_again(self) -> None:
        """Time may have passed."""
        self._renewals.look_again()

    async def _first(self) -> None:
        while self.held is None:
            wait = await self._renewals.step()
            if (reason := self._refusal()) is not None:
                raise _no_certificate(reason)
            if self.held is None:
                await asyncio.sleep(wait.total_seconds())

    async def _until_held(self) -> None:
        changed = asyncio.Event()
        end = self.cache.subscribe(changed.set)
        try:
            while self.held is None:
                changed.clear()
                await changed.wait()
        finally:
            end()

    def _refusal(self) -> str | None:
        return self._renewals.refusal(self._want)

    def _is_written(self, context: X509Context) -> bool:
        if (written := self._written) is None:
            return False
        domain = self._means.trust_domain
        return written.svid is context.svid and written.bundle(domain) is context.bundle(domain)

    def _write(self, context: X509Context) -> None:
        self.folder.keep(context.svid)
        if self.publication.attributes.form is Form.FILES:
            self.folder.write_files(context, self.publication.attributes.files)

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._renewals.run())
            group.create_task(self._keep_written())

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.trouble = "it is renewed no more: restart the agent"
            log.error("a volume is renewed no more", pod=self.publication.pod, exc_info=error)

    async def _keep_written(self) -> None:
        changed, backoff = asyncio.Event(), Backoff()
        end = self.cache.subscribe(changed.set)
        try:
            while True:
                changed.clear()
                wait = await self._tried(backoff)
                await comes_within(changed, wait)
        finally:
            end()

    async def _tried(self, backoff: Backoff) -> timedelta | None:
        try:
            await self.write()
        except IstioAuthError as error:
            wait = backoff.failed(error.retry_after)
            if self.trouble != str(error):
                log.warning("a volume was not written", pod=self.publication.pod, reason=str(error))
            self.trouble = str(error)
            return wait
        backoff.succeeded()
        self.trouble = None
        return None


class _ByToken:
    """The CA, asked with a pod's own token for the pod's own identity (`Signer`)."""

    def __init__(self, volume: Volume, ca: IstioClient) -> None:
        self._volume, self._ca = volume, ca

    async def sign(self, requests: Sequence[SigningRequest]) -> list[Outcome]:
        """See `Signer.sign`."""
        if (token := self._volume.token) is None:
            raise NotReady("the kubelet has brought no token yet")
        return await self._ca.sign([replace(each, own=True) for each in requests], token=token.value)


def _no_certificate(reason: str) -> NotReady:
    message = f"there is no certificate for the pod: {reason}"
    return NotReady(message, public=message)


def seconds_for(limit: timedelta, time_remaining: float | None) -> float:
    """How long a call may wait: a second before its caller gives up it is to be answered, and all undone.

    Args:
        limit: the longest time.
        time_remaining: in how many seconds the caller gives up; None if it does not say.
    """
    longest = limit.total_seconds()
    return longest if time_remaining is None else max(0.0, min(longest, time_remaining - min(1.0, time_remaining / 4)))
