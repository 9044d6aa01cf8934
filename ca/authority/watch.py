"""The watch over the authority: a root of our own is renewed in time, a plugged-in issuer is followed."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import structlog

from ca.authority.authority import Authority
from ca.authority.plugged import PluggedAuthority
from istio_auth.clock import Clock

_SELDOM = timedelta(hours=1)
_PLUGGED = timedelta(minutes=1)  # an operator who has put new files there is waiting for a reaction
_OFTEN = timedelta(seconds=1)
_LOOKS_PER_LIFE = 200  # so that even for a short life we look often during its last fifth
_log = structlog.get_logger()


class AuthorityWatch:
    """Looks after an authority. Lives on one event loop.

    Args:
        authority: the authority.
        clock: tells the time.
        shared: whether other processes change the state too: then it is loaded again before each look.
    """

    def __init__(self, authority: Authority, clock: Clock, *, shared: bool = False) -> None:
        self._authority = authority
        self._clock = clock
        self._shared = shared

    @property
    def interval(self) -> timedelta:
        """How often to look."""
        issuer = self._authority.state.active
        life = issuer.not_after - issuer.not_before
        seldom = _PLUGGED if isinstance(self._authority, PluggedAuthority) else _SELDOM
        return max(_OFTEN, min(seldom, life / _LOOKS_PER_LIFE))

    async def look(self) -> None:
        """Do what is due.

        Raises:
            ConfigurationError, ConflictError, NotReady: it did not work; the authority that was there stays in use.
        """
        if await asyncio.to_thread(self._look):
            bundle = self._authority.bundle
            _log.warning(
                "the authority changed",
                not_after=self._authority.not_after.isoformat(),
                bundle_sequence=bundle.sequence,
                roots=len(bundle.x509_authorities),
            )

    def _look(self) -> bool:
        now = self._clock.now()
        reloaded = self._shared and self._authority.reload()
        renewed = self._authority.renew_if_due(now)  # first: files that can not be used must not stop it
        followed = isinstance(self._authority, PluggedAuthority) and self._authority.follow(now)
        return reloaded or renewed or followed
