"""An agent that asks no CA: it serves the certificate in a mounted folder to whoever reaches its sockets.

In a pod, Kubernetes itself can mount a certificate and its roots and renew them (`podCertificate` with a
ClusterTrustBundle, or the secret `istio.<service account>`). This agent gives them to a sidecar by secret discovery and
to applications by the Workload API. The folder is the identity: every caller at every socket has it, so who may reach
the sockets is up to their modes and their folder.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path

import structlog

from istio_auth.bundle import BundleSet
from istio_auth.clock import Clock
from istio_auth.daemon.lifecycle import Daemon
from istio_auth.errors import IstioAuthError, NotReady
from istio_auth.registration import Registration, Selector
from istio_auth.sources.files import FileSource
from istio_auth.x509_source import X509Context
from node_agent.admin.status import Status, svid_document
from node_agent.backoff import comes_within
from node_agent.config import Config
from node_agent.front import front
from node_agent.metrics import Metrics
from node_agent.serving import Workloads
from node_agent.workloads.cache import Held, WorkloadCache
from node_agent.workloads.registrations import Want
from node_agent.workloads.renewal import measure

LOOK = timedelta(seconds=5)  # how late it may be noticed that what is held has ended
log = structlog.get_logger()


class MountedAgent:
    """All parts of such an agent. Made on a thread, because it reads files; runs on one event loop.

    Args:
        config: the settings.
        folder: where the certificate is.
        clock: tells the time.
    """

    def __init__(self, config: Config, folder: Path, clock: Clock) -> None:
        self.config, self.clock, self.metrics = config, clock, Metrics()
        self.source = FileSource(folder, roots=config.mounted_roots, clock=clock)
        self.cache = WorkloadCache(BundleSet())
        self.trouble: str | None = "nothing was read yet"
        self.workloads = Workloads(
            config,
            self.cache,
            clock=clock,
            metrics=self.metrics,
            registrations_missing=lambda: self.trouble,
            by_socket=True,
        )
        self._taken: X509Context | None = None
        measure(self.metrics, self.cache, clock)

    @property
    def delay(self) -> str | None:
        """Why what is served is not what is in the folder now; None if it is, or if nothing is served."""
        return None if self.trouble else self.source.status().trouble

    @asynccontextmanager
    async def serving(self, daemon: Daemon) -> AsyncIterator[None]:
        """Serve workloads from entering to leaving."""
        daemon.readiness.add("mounted", lambda: self.trouble)
        daemon.readiness.mention("mounted", lambda: self.delay)
        status = Status(
            clock=self.clock,
            cache=self.cache,
            workloads=self.workloads,
            own=lambda: svid_document(next(iter(self.cache.snapshot.held.values()), None), self._trouble()),
            ca=lambda: {"in_sync": False, "trouble": "none is asked: the certificate is mounted", "bundle_sequence": 0},
            refusal=lambda _want: self._trouble(),
            problems=daemon.readiness.problems,
        )
        self.look()
        with self.source:
            async with front(self.config, daemon, workloads=self.workloads, status=status, metrics=self.metrics):
                daemon.supervise("mounted", self.run())
                yield

    async def run(self) -> None:
        """Follow the folder for as long as we run."""
        changed, loop = asyncio.Event(), asyncio.get_running_loop()

        def tell() -> None:
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(changed.set)

        end = self.source.subscribe(tell)
        try:
            while True:
                changed.clear()
                self.look()
                await comes_within(changed, LOOK)
        finally:
            end()

    def look(self) -> None:
        """Take what is in the folder now, or let go of what has ended."""
        try:
            context = self.source.x509_context()
            self._check(context)
        except IstioAuthError as error:
            if self.trouble != str(error):
                log.warning("what is mounted can not be served", reason=str(error))
            self.trouble, self._taken = str(error), None
            self.cache.drop(self.cache.snapshot.held.keys())
            return
        self.trouble = None
        if context is not self._taken:
            self._taken = context
            self._take(context)

    def _trouble(self) -> str | None:
        return self.trouble or self.delay

    def _check(self, context: X509Context) -> None:
        found = context.svid.id.trust_domain
        if found != self.config.trust_domain:
            raise NotReady(
                f"{context.svid.id} is not of {self.config.trust_domain}: set trust_domain to {found}, or mount another"
            )

    def _take(self, context: X509Context) -> None:
        svid = context.svid
        selectors = [Selector("socket", each.name) for each in self.config.sockets]
        selectors += [Selector("files", each.name) for each in self.config.files]
        self.cache.trust(context.bundles)
        self.cache.register(tuple(Registration(svid.id, frozenset({each})) for each in selectors))
        self.cache.put([Held(svid, Want(svid.id), svid.not_after)])
        log.info("the mounted certificate is served", spiffe_id=str(svid.id), not_after=f"{svid.not_after:%FT%TZ}")
