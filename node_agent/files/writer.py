"""Keeps one folder as its workload's SVID and trust bundle are, and tells its reader of each change.

    changed -> written as one whole -> the reader is told -> until it was told, again and again

What can not be written, or told, is tried again with growing waits; a newer change takes the place of an older one.
A reader that was not told has the new files all the same. Files of an identity that is nobody's any more stay where
they are until they are replaced or removed: who removes them would stop a program that runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime

import structlog

from istio_auth.bundle import TrustBundle
from istio_auth.clock import Clock
from istio_auth.errors import IstioAuthError
from istio_auth.registration import Selector
from istio_auth.sources.svid_files import write_svid
from istio_auth.spiffe_id import SpiffeID
from istio_auth.svid import X509SVID
from istio_auth.x509_source import X509Context
from node_agent.backoff import Backoff
from node_agent.cache import WorkloadCache
from node_agent.entitlement import Entitlement
from node_agent.files.hook import hook_of
from node_agent.files.settings import FilesSettings
from node_agent.metrics import Metrics

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Written:
    """What became of the files.

    Args:
        spiffe_id: whose they are.
        svid: what was written.
        bundle: the trust bundle that was written.
        at: when.
        told: what came of telling the reader; empty while it was not told, or if nobody is to be told.
        trouble: why the latest attempt to write or to tell failed; None if it did not.
        attempts: how many attempts have failed since the last that did not.
    """

    spiffe_id: SpiffeID | None = None
    svid: X509SVID | None = None
    bundle: TrustBundle | None = None
    at: datetime | None = None
    told: str = ""
    trouble: str | None = None
    attempts: int = 0


class FilesWriter:
    """One folder.

    Args:
        settings: where, and who is told.
        cache: what workloads hold.
        clock: tells the time.
        metrics: counts.
        progress: called when something was written.
        backoff: makes the waits; by default real ones.
    """

    def __init__(
        self,
        settings: FilesSettings,
        cache: WorkloadCache,
        *,
        clock: Clock,
        metrics: Metrics,
        progress: Callable[[], None],
        backoff: Backoff | None = None,
    ) -> None:
        self.settings = settings
        self.state = Written()
        self._cache, self._clock, self._metrics, self._progress = cache, clock, metrics, progress
        self._entitled = Entitlement(frozenset({Selector("files", settings.name)}), cache)
        self._hook = hook_of(settings)
        self._backoff = backoff or Backoff()
        self._told_nobody = False

    def is_current(self) -> bool | None:
        """Whether the files hold the present trust bundle; None if there are none."""
        if (bundle := self.state.bundle) is None:
            return None
        return any(bundle is each for each in self._cache.snapshot.bundles)

    async def run(self) -> None:
        """Keep the files for as long as we run."""
        changed = asyncio.Event()
        end = self._cache.subscribe(changed.set)
        try:
            while True:
                changed.clear()
                wait = await self._step()
                try:
                    async with asyncio.timeout(wait):
                        await changed.wait()
                except TimeoutError:
                    continue
        finally:
            end()

    async def _step(self) -> float | None:
        """Do what is to be done now.

        Returns:
            after how many seconds to try again; None if there is nothing to try.
        """
        context = self._entitled.context
        if not context.svids:
            self._tell_that_nothing_is_earned()
            return None
        try:
            if self._differs(context):
                await self._write(context)
            if self._hook is not None and not self.state.told:
                self.state = replace(self.state, told=await self._hook())
                log.info("a reader of files was told", files=self.settings.name, result=self.state.told)
        except IstioAuthError as error:
            return self._note_failure(error)
        self._backoff.succeeded()
        self.state = replace(self.state, trouble=None, attempts=0)
        return None

    def _differs(self, context: X509Context) -> bool:
        svid = context.svid
        return self.state.svid is not svid or self.state.bundle is not context.bundle(svid.id.trust_domain)

    async def _write(self, context: X509Context) -> None:
        settings, svid = self.settings, context.svid
        await asyncio.to_thread(
            lambda: write_svid(
                settings.folder,
                context,
                layout=settings.names,
                key_mode=settings.mode,
                group=settings.group_number(),
            )
        )
        bundle = context.bundle(svid.id.trust_domain)
        self.state = Written(svid.id, svid, bundle, self._clock.now())
        self._metrics.files_written.labels(settings.name).inc()
        log.info(
            "files were written",
            files=settings.name,
            folder=str(settings.folder),
            spiffe_id=str(svid.id),
            not_after=f"{svid.not_after:%FT%TZ}",
        )
        self._progress()

    def _note_failure(self, error: IstioAuthError) -> float:
        wait = self._backoff.failed(error.retry_after)
        tell = log.debug if self.state.trouble == str(error) else log.warning
        self.state = replace(self.state, trouble=str(error), attempts=self._backoff.attempts)
        self._metrics.files_failed.labels(self.settings.name).inc()
        tell(
            "files were not written, or their reader was not told",
            files=self.settings.name,
            reason=str(error),
            attempt=self._backoff.attempts,
            again_in_seconds=round(wait.total_seconds(), 1),
        )
        return wait.total_seconds()

    def _tell_that_nothing_is_earned(self) -> None:
        if self._entitled.ids or self._told_nobody:
            return
        self._told_nobody = True
        log.warning("no registration fits these files", files=self.settings.name, **self._entitled.explained())
