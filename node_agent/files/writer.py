"""Keeps the files of one folder up to date with a workload's SVID and trust bundle, and tells their reader of changes.

    changed -> written as one whole -> the reader is told -> until it was told, again and again

What stands there already, in content, mode and owner, is not written again, and a reader that was told of it is not
told again: an agent that starts anew disturbs nobody. What can not be written, or told, is tried again with growing
waits; a newer change takes the place of an older one. A reader that was not told has the new files all the same. Files
that somebody took away come back within a minute. Files of an identity that is nobody's any more stay where they are
until they are replaced or removed: who removes them would stop a program that runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TypeAlias

import structlog

from istio_auth.bundle import TrustBundle
from istio_auth.clock import Clock
from istio_auth.errors import IstioAuthError
from istio_auth.registration import Selector
from istio_auth.sources.svid_files import SVIDFiles, is_there, svid_is_written, write_svid
from istio_auth.spiffe_id import SpiffeID
from istio_auth.svid import X509SVID
from istio_auth.x509_source import X509Context
from node_agent.backoff import Backoff, comes_within
from node_agent.files.hook import hook_of
from node_agent.files.record import Told, changed_at, record, recorded
from node_agent.files.settings import FilesSettings
from node_agent.metrics import Metrics
from node_agent.workloads.cache import WorkloadCache
from node_agent.workloads.entitlement import Entitlement

LOOK = timedelta(minutes=1)  # how often one looks whether the files are still there
Content: TypeAlias = tuple[X509SVID | None, TrustBundle | None]
log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Written:
    """What became of the files.

    Args:
        spiffe_id: whose they are.
        svid: what stands in them.
        bundle: the trust bundle that stands in them.
        at: when they were written.
        told: what came of telling the reader of them; None while it was not told, or if nobody is to be told.
        trouble: why the latest attempt to write or to tell failed; None if it did not.
        attempts: how many attempts have failed since the last that did not.
        again: when the next attempt is; None if there is nothing to try.
    """

    spiffe_id: SpiffeID | None = None
    svid: X509SVID | None = None
    bundle: TrustBundle | None = None
    at: datetime | None = None
    told: Told | None = None
    trouble: str | None = None
    attempts: int = 0
    again: datetime | None = None


class FilesWriter:
    """One folder.

    Args:
        settings: where, and who is told.
        cache: what workloads hold.
        clock: tells the time.
        metrics: counts.
        progress: called when something was written, or its reader was told.
        backoff: makes the waits; by default real ones.
        look: how often to look whether the files are still there.
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
        look: timedelta = LOOK,
    ) -> None:
        self.settings = settings
        self.state = Written()
        self._cache, self._clock, self._metrics, self._progress = cache, clock, metrics, progress
        self._entitled = Entitlement(frozenset({Selector("files", settings.name)}), cache)
        self._hook = hook_of(settings)
        self._backoff, self._look = backoff or Backoff(), look
        self._failed: Content | None = None  # what was to be written or told when that failed
        self._told_nobody = False

    def is_current(self) -> bool | None:
        """Whether the reader has the present trust bundle: it is written, and whoever is to be told was told.

        None if there are no files.
        """
        if (bundle := self.state.bundle) is None:
            return None
        present = any(bundle is each for each in self._cache.snapshot.bundles)
        return present and (self._hook is None or self.state.told is not None)

    async def run(self) -> None:
        """Keep the files for as long as we run."""
        changed = asyncio.Event()
        end = self._cache.subscribe(changed.set)
        try:
            while True:
                changed.clear()
                wait = await self._step()
                await comes_within(changed, min(wait, self._look))
        finally:
            end()

    async def _step(self) -> timedelta:
        """Do what is to be done now.

        Returns:
            after how long to look again, at the latest.
        """
        context = self._entitled.context
        if not context.svids:
            self._tell_that_nothing_is_earned()
            return self._look
        content = _content(context)
        if self._failed is not None and _same(self._failed, content) and (wait := self._backoff.remaining()):
            return wait  # it was somebody else's certificate that changed
        try:
            if not _same((self.state.svid, self.state.bundle), content) or not await asyncio.to_thread(self._stands):
                await self._keep(context)
            if self._hook is not None and self.state.told is None:
                await self._tell(await self._hook())
        except IstioAuthError as error:
            self._failed = content
            return self._note_failure(error)
        self._settle(self.state.told)
        return self._look

    def _settle(self, told: Told | None) -> None:
        self._backoff.succeeded()
        self._failed = None
        self.state = replace(self.state, told=told, trouble=None, attempts=0, again=None)

    def _stands(self) -> bool:
        """Whether nobody took the files away: what else is done to them is the affair of whoever does it."""
        files = SVIDFiles.in_folder(self.settings.folder, self.settings.names)
        return files.swapped and all(map(is_there, files.paths))

    async def _keep(self, context: X509Context) -> None:
        """Have the files hold this: they do already, or are written."""
        svid = context.svid
        stood, at, told = await asyncio.to_thread(self._write, context)
        self.state = replace(
            self.state, spiffe_id=svid.id, svid=svid, bundle=context.bundle(svid.id.trust_domain), at=at, told=told
        )
        if not stood:
            self._metrics.files_written.labels(self.settings.name).inc()
        log.info(
            "files stand as they shall" if stood else "files were written",
            files=self.settings.name,
            folder=str(self.settings.folder),
            spiffe_id=str(svid.id),
            not_after=f"{svid.not_after:%FT%TZ}",
        )
        self._progress()

    def _write(self, context: X509Context) -> tuple[bool, datetime, Told | None]:
        """Whether they stood there already, since when, and what the reader was told of them."""
        settings = self.settings
        layout, mode, group = settings.names, settings.mode, settings.group_number()
        if svid_is_written(settings.folder, context, layout=layout, key_mode=mode, group=group):
            return True, changed_at(settings.folder / layout.key), recorded(settings.folder, settings.hook)
        write_svid(settings.folder, context, layout=layout, key_mode=mode, group=group)
        return False, self._clock.now(), None

    async def _tell(self, result: str) -> None:
        told = Told(result, self._clock.now())
        self._settle(told)
        log.info("a reader of files was told", files=self.settings.name, result=result)
        self._progress()
        try:
            await asyncio.to_thread(record, self.settings.folder, self.settings.hook, told)
        except IstioAuthError as error:
            log.warning(
                "it could not be kept that a reader was told: after a restart it is told again",
                files=self.settings.name,
                reason=str(error),
            )

    def _note_failure(self, error: IstioAuthError) -> timedelta:
        wait = self._backoff.failed(error.retry_after)
        tell = log.debug if self.state.trouble == str(error) else log.warning
        self.state = replace(
            self.state, trouble=str(error), attempts=self._backoff.attempts, again=self._clock.now() + wait
        )
        self._metrics.files_failed.labels(self.settings.name).inc()
        tell(
            "files were not written, or their reader was not told",
            files=self.settings.name,
            reason=str(error),
            attempt=self._backoff.attempts,
            again_in_seconds=round(wait.total_seconds(), 1),
        )
        return wait

    def _tell_that_nothing_is_earned(self) -> None:
        if self._entitled.ids or self._told_nobody:
            return
        self._told_nobody = True
        log.warning("no registration fits these files", files=self.settings.name, **self._entitled.explained())


def _content(context: X509Context) -> Content:
    svid = context.svid
    return svid, next((each for each in context.bundles if each.trust_domain == svid.id.trust_domain), None)


def _same(one: Content, other: Content) -> bool:
    return one[0] is other[0] and one[1] is other[1]
