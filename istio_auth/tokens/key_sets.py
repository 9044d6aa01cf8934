"""KeySets: the keys of all token issuers, each kept by itself, so that a bad one never delays another."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from istio_auth.clock import Clock
from istio_auth.errors import ConfigurationError
from istio_auth.jwks import KeySet
from istio_auth.tokens.fetch import KeyFetcher
from istio_auth.tokens.issuer_keys import IssuerKeys, IssuerStatus, KeySetTimes
from istio_auth.tokens.key_sources import KeySource


class KeySets:
    """Keeps the keys of issuers from entering to leaving. Lives on one event loop.

    Args:
        sources: where the keys of each issuer come from.
        clock: tells how old keys are.
        times: how often they are fetched, and for how long they count.
    """

    def __init__(self, sources: Mapping[str, KeySource], *, clock: Clock, times: KeySetTimes | None = None) -> None:
        self._inline = {issuer: source for issuer, source in sources.items() if isinstance(source, KeySet)}
        self._fetchers = {
            issuer: KeyFetcher(issuer, source) for issuer, source in sources.items() if not isinstance(source, KeySet)
        }
        self._fetched = {
            issuer: IssuerKeys(issuer, fetcher.fetch, clock=clock, times=times or KeySetTimes())
            for issuer, fetcher in self._fetchers.items()
        }
        self._issuers = tuple(sources)
        self._tasks: list[asyncio.Task[None]] = []
        self._entered = False

    async def __aenter__(self) -> Self:
        """Begin to fetch; nobody is waited for.

        Raises:
            ConfigurationError: it was entered before.
        """
        if self._entered:
            raise ConfigurationError("a token verifier is entered once: make another one")
        self._entered = True
        self._tasks = [keys.start() for keys in self._fetched.values()]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for fetcher in self._fetchers.values():
            fetcher.close()

    async def keys(self, issuer: str) -> KeySet:
        """The keys of an issuer that count now.

        Raises:
            NotReady: they could not be fetched so far.
        """
        return self._inline[issuer] if issuer in self._inline else await self._fetched[issuer].keys()

    async def newer(self, issuer: str, than: KeySet) -> KeySet | None:
        """Other keys of an issuer than these, which could not judge a token; None if there are none so soon."""
        return None if issuer in self._inline else await self._fetched[issuer].newer(than)

    def status(self) -> tuple[IssuerStatus, ...]:
        """How it stands with each issuer."""
        return tuple(self._status(issuer) for issuer in self._issuers)

    def _status(self, issuer: str) -> IssuerStatus:
        if (keys := self._inline.get(issuer)) is None:
            return self._fetched[issuer].status()
        return IssuerStatus(issuer, ready=True, keys=len(keys.keys), left_out=keys.left_out)
