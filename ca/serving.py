"""Keeps the CA's own server certificate: from its own issuer, and renewed without an interruption.

It is renewed at half of its life with jitter, and as soon as the authority has changed. Key and certificate are only in
memory: a restart makes new ones. It has the CA's SPIFFE ID, which our agents check, and the DNS names and addresses by
which other clients know the server.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime, timedelta

import structlog

from ca.authority.authority import Authority
from ca.issuer import Issuer
from istio_auth.bundle import BundleSet
from istio_auth.clock import Clock
from istio_auth.errors import IstioAuthError
from istio_auth.keys import new_private_key
from istio_auth.rotation import renewal_due, retry_delay
from istio_auth.sources.memory import MemorySource
from istio_auth.svid import X509SVID
from istio_auth.x509_source import X509Context

_LOOK = timedelta(minutes=1)  # at least this often, because a clock may jump and a machine may sleep
_FIRST_RETRY, _LONGEST_RETRY = timedelta(seconds=1), timedelta(minutes=1)
_log = structlog.get_logger()


class ServingCertificate:
    """Keeps the server's certificate in a source that TLS contexts follow. Lives on one event loop.

    Args:
        issuer: makes it.
        authority: its bundle verifies the certificates of callers.
        names: DNS names and addresses of the server.
        clock: tells the time.
        draw: gives a number in [0, 1).
    """

    def __init__(
        self,
        issuer: Issuer,
        authority: Authority,
        names: Sequence[str],
        *,
        clock: Clock,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.source = MemorySource()
        self._issuer = issuer
        self._authority = authority
        self._names = tuple(names)
        self._clock = clock
        self._draw = draw
        self._due: datetime | None = None
        self._end: datetime | None = None
        self._made_of: tuple[object, object] = (None, None)
        self._changed = asyncio.Event()

    @property
    def not_after(self) -> datetime | None:
        """When the certificate ends; None before the first."""
        return self._end

    async def renew(self) -> None:
        """Put a new certificate, with a new key, in the place of the old.

        Raises:
            NotReady: none can be made now.
            MalformedError: a name is not valid in a certificate.
        """
        key, bundle = new_private_key(), self._authority.bundle
        self._made_of = (self._authority.state.active, bundle)
        issued = await self._issuer.issue_serving(key.public_key(), self._names)
        svid = X509SVID(issued.spiffe_id, issued.certificates(), key)
        self.source.replace(X509Context((svid,), BundleSet((bundle,))))
        self._end = issued.not_after
        self._due = renewal_due(issued.not_before, issued.not_after, draw=self._draw())
        _log.info("serving certificate renewed", serial=f"{issued.serial:x}", not_after=issued.not_after.isoformat())

    async def keep(self) -> None:
        """Renew it whenever that is due, for ever; a failure is reported and tried again."""
        loop = asyncio.get_running_loop()

        def changed() -> None:
            loop.call_soon_threadsafe(self._changed.set)

        end = self._authority.subscribe(changed)
        try:
            while True:
                if self._until_due() <= timedelta():
                    await self._renew_stubbornly()
                await self._wait(self._until_due())
        finally:
            end()

    def not_ready(self) -> str | None:
        """Why no caller could accept the server now; None if they can."""
        if self._end is None:
            return "there is no serving certificate yet"
        return "the serving certificate has ended" if self._clock.now() >= self._end else None

    async def _renew_stubbornly(self) -> None:
        attempt = 0
        while True:
            try:
                return await self.renew()
            except IstioAuthError as error:
                attempt += 1
                delay = retry_delay(attempt, draw=self._draw(), first=_FIRST_RETRY, longest=_LONGEST_RETRY)
                _log.error("serving certificate not renewed", reason=str(error), again_in=delay.total_seconds())
                await self._wait(delay)

    async def _wait(self, duration: timedelta) -> None:
        """Wait for so long, for a change of the authority, or for the time to look again."""
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, min(duration, _LOOK).total_seconds())):
                await self._changed.wait()
        self._changed.clear()

    def _until_due(self) -> timedelta:
        (active, bundle), authority = self._made_of, self._authority
        if self._due is None or active != authority.state.active or bundle is not authority.bundle:
            return timedelta()
        return self._due - self._clock.now()
