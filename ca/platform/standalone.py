"""The standalone platform: one machine or many without Kubernetes. Files stand behind every port.

<state folder>/authority.json     the authority, or a reference to a plugged-in one

The other files are those of every platform (see `ca.certificate_authority`).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from ca.authority.authority import TEN_YEARS, Authority, open_authority
from ca.authority.plugged import open_plugged_authority
from ca.authority.store import AuthorityStore, FileAuthorityStore
from ca.certificate_authority import CertificateAuthority, Settings
from istio_auth.clock import Clock
from istio_auth.files import private_folder


@dataclass(frozen=True, slots=True)
class StandaloneSettings(Settings):
    """How a standalone CA is set up.

    Args:
        plugged_in: the folder of a plugged-in authority; None for one of our own.
        root_lifetime: how long a root of our own lives.
    """

    plugged_in: Path | None = None
    root_lifetime: timedelta = TEN_YEARS


class Standalone(CertificateAuthority):
    """The CA over files. Lives on one event loop; opening it blocks.

    Args:
        settings: how it is set up.
        clock: tells the time.
        store: keeps the authority; by default the state folder, which the caller holds (`FileAuthorityStore.hold`).

    Raises:
        ConfigurationError: a file or folder can not be used.
        NotReady: one could not be looked at.
    """

    def __init__(self, settings: StandaloneSettings, clock: Clock, *, store: AuthorityStore | None = None) -> None:
        folder = private_folder(settings.state_folder)
        super().__init__(settings, _authority(settings, clock, store or FileAuthorityStore(folder)), clock)


def _authority(settings: StandaloneSettings, clock: Clock, store: AuthorityStore) -> Authority:
    if settings.plugged_in is not None:
        return open_plugged_authority(settings.plugged_in, store, settings.trust_domain, clock)
    return open_authority(store, settings.trust_domain, clock, lifetime=settings.root_lifetime)
