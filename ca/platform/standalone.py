"""The standalone platform: one machine or many, without Kubernetes. Every port has an adapter over files.

<state folder>/authority.json     the authority, or a reference to a plugged-in one

The other files are those of every platform (see `ca.certificate_authority`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path

import structlog
from prometheus_client.registry import CollectorRegistry

from ca.authority.authority import TEN_YEARS, open_authority
from ca.authority.plugged import open_plugged_authority
from ca.authority.store import AuthorityStore, FileAuthorityStore
from ca.certificate_authority import CertificateAuthority, Settings
from ca.config import Config
from ca.metrics import Gauge
from ca.platform.platform import ca_settings
from istio_auth.clock import Clock
from istio_auth.daemon.alarm import Alarm
from istio_auth.daemon.lifecycle import Daemon
from istio_auth.files import private_folder

_log = structlog.get_logger()


class Standalone(CertificateAuthority):
    """The CA over files. Lives on one event loop; opening it blocks.

    Args:
        settings: how it is set up.
        clock: tells the time.
        store: keeps the authority; by default the state folder, which the caller holds (`FileAuthorityStore.hold`).
        plugged_in: the folder of a plugged-in authority; None for one of our own.
        root_lifetime: how long a root of our own lives.

    Raises:
        ConfigurationError: a file or folder can not be used.
        NotReady: one could not be looked at.
    """

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        *,
        store: AuthorityStore | None = None,
        plugged_in: Path | None = None,
        root_lifetime: timedelta = TEN_YEARS,
    ) -> None:
        store = store or FileAuthorityStore(private_folder(settings.state_folder))
        domain, longest = settings.trust_domain, settings.profile.max_ttl
        if plugged_in is None:
            authority = open_authority(store, domain, clock, lifetime=root_lifetime, longest_ttl=longest)
        else:
            authority = open_plugged_authority(plugged_in, store, domain, clock, longest_ttl=longest)
        super().__init__(settings, authority, clock)


@dataclass(frozen=True, slots=True)
class _StandalonePlatform:
    ca: CertificateAuthority
    shares_authority: bool = False

    def gauges(self) -> tuple[Gauge, ...]:
        return ()

    def register(self, registry: CollectorRegistry) -> None:
        """Nothing: it has no metrics of its own."""

    def look_after(self, daemon: Daemon, alarm: Alarm) -> None:
        """Nothing: it has no tasks of its own."""


@asynccontextmanager
async def open_standalone(config: Config, clock: Clock) -> AsyncIterator[_StandalonePlatform]:
    """The platform as a configuration describes it, with its store held.

    Raises:
        ConfigurationError: a file or folder can not be used.
        NotReady: one could not be looked at, or another process runs on it.
    """
    store = FileAuthorityStore(config.state_folder)
    with store.hold():
        # On a thread: the health port is open by now, and must be answered even while a slow disk is read.
        opening = partial(
            Standalone, plugged_in=config.authority.folder, root_lifetime=config.authority.root_lifetime, store=store
        )
        ca = await asyncio.to_thread(opening, ca_settings(config), clock)
        if not await asyncio.to_thread(config.registrations.exists):
            _log.warning("there is no registrations file: agents can ask for nothing", path=str(config.registrations))
        try:
            yield _StandalonePlatform(ca)
        finally:
            await ca.close()
