"""Keeps what workloads hold for the agent's next start: restores the cache, then writes down each change of it.

What can not be written, because the folder is full for instance, is served on from memory, and written as soon as that
is possible. What somebody removed from the folder is written again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta

import structlog

from istio_auth.errors import IstioAuthError, NotReady
from istio_auth.spiffe_id import TrustDomain
from node_agent.backoff import Backoff, comes_within
from node_agent.workloads.cache import WorkloadCache
from node_agent.workloads.kept import WorkloadFolder

_SETTLE = 0.1  # seconds; what changes within this time is written once
_LONGEST = timedelta(seconds=10)  # between two attempts to write
_LOOK = timedelta(seconds=30)  # so often is looked whether what was written is still there
log = structlog.get_logger()


class Keeping:
    """Restores a cache from the folder, then keeps the folder as the cache is.

    Args:
        folder: where.
        cache: what.
        trust_domain: our own.
        from_ca: whether the registrations come from the CA, and not from a file that is read anew.
        backoff: makes the waits; by default real ones.

    Attributes:
        trouble: why what is held is not kept; None if it is.
    """

    def __init__(
        self,
        folder: WorkloadFolder,
        cache: WorkloadCache,
        trust_domain: TrustDomain,
        *,
        from_ca: bool,
        backoff: Backoff | None = None,
    ) -> None:
        self._folder, self._cache = folder, cache
        self._trust_domain, self._from_ca = trust_domain, from_ca
        self._backoff = backoff or Backoff(longest=_LONGEST)
        self.trouble: str | None = None

    def restore(self, now: datetime, draw: Callable[[], float]) -> bool:
        """Put into the cache what was kept. Blocks.

        Returns:
            whether there were registrations.

        Raises:
            ConfigurationError: the folder is not ours alone.
        """
        try:
            self._folder.open()
        except NotReady as error:
            self._note(error)
            return False
        rows = self._folder.registrations(self._trust_domain) if self._from_ca else None
        if rows is not None:
            self._cache.register(rows)
        if held := self._cache.put(self._folder.svids(self._cache.snapshot.bundles, now, draw)):
            log.info("workloads are served from what was kept", svids=len(held), folder=str(self._folder.path))
        return rows is not None

    async def run(self, is_heard: Callable[[], bool]) -> None:
        """Write down each change, for as long as we run.

        Args:
            is_heard: whether the registrations in the cache come from somewhere by now, and are not just none yet.
        """
        changed = asyncio.Event()
        end = self._cache.subscribe(changed.set)
        try:
            while True:
                changed.clear()
                wait = await self._write(registrations=self._from_ca and is_heard())
                if await comes_within(changed, wait):
                    await asyncio.sleep(_SETTLE)
        finally:
            end()

    async def _write(self, *, registrations: bool) -> timedelta:
        """Write, and say how long after to look again."""
        try:
            await asyncio.to_thread(self._folder.keep, self._cache.snapshot, registrations=registrations)
        except (IstioAuthError, OSError) as error:
            self._note(error)
            return self._backoff.failed()
        if self.trouble is not None:
            log.info("what workloads hold is kept for the next start again", folder=str(self._folder.path))
        self.trouble = None
        self._backoff.succeeded()
        return _LOOK

    def _note(self, error: Exception) -> None:
        if str(error) != self.trouble:
            log.warning("what workloads hold is not kept for the next start", reason=str(error))
        self.trouble = str(error)
