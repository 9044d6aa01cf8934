"""KeySets: the keys of all token issuers, each kept by itself, so that one that is down never delays another."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

from istio_auth.clock import Clock
from istio_auth.errors import ConfigurationError
from istio_auth.jwks import KeySet
from istio_auth.tokens.fetch import KeyFetcher
from istio_auth.tokens.issuer_keys import IssuerKeys, IssuerStatus, KeySetTimes
from istio_auth.tokens.key_sources import KeySource


class KeySets:
    """Keeps the keys of issuers up to date inside its `async with` block, on one event loop. It can be entered again.

    Args:
        sources: where the keys of each issuer come from.
        clock: tells how old keys are.
        times: how often they are fetched, and for how long they count.
    """

    def __init__(self, sources: Mapping[str, KeySource], *, clock: Clock, times: KeySetTimes | None = None) -> None:
        self._sources = dict(sources)
        self._inline = {issuer: source for issuer, source in sources.items() if isinstance(source, KeySet)}
        self._clock = clock
        self._times = times or KeySetTimes()
        self._leaving: AsyncExitStack | None = None
        self._fetched: dict[str, IssuerKeys] = {}
        self._make()

    async def __aenter__(self) -> Self:
        """Begin to fetch, without waiting for the first keys.

        Raises:
            ConfigurationError: it is entered already.
        """
        if self._leaving is not None:
            raise ConfigurationError("a token verifier is entered once at a time: it has one event loop")
        self._leaving = AsyncExitStack()
        for fetcher in self._make():
            self._leaving.callback(fetcher.close)
        self._leaving.push_async_callback(_ended, [keys.start() for keys in self._fetched.values()])
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        leaving, self._leaving = self._leaving, None
        if leaving is not None:
            await leaving.aclose()

    def _make(self) -> list[KeyFetcher]:
        """Make new `IssuerKeys` without keys, and return their fetchers."""
        fetchers = {
            issuer: KeyFetcher(issuer, source)
            for issuer, source in self._sources.items()
            if not isinstance(source, KeySet)
        }
        self._fetched = {
            issuer: IssuerKeys(issuer, fetcher.fetch, clock=self._clock, times=self._times)
            for issuer, fetcher in fetchers.items()
        }
        return list(fetchers.values())

    async def keys(self, issuer: str) -> KeySet:
        """The keys of an issuer that count now.

        Raises:
            NotReady: they could not be fetched so far, or are too old.
        """
        return self._inline[issuer] if issuer in self._inline else await self._fetched[issuer].keys()

    async def newer(self, issuer: str, than: KeySet) -> KeySet | None:
        """Newer keys of an issuer, because `than` has no key for a token; None if there are none, or it is too soon."""
        return None if issuer in self._inline else await self._fetched[issuer].newer(than)

    def status(self) -> tuple[IssuerStatus, ...]:
        """The status of each issuer's keys."""
        return tuple(self._status(issuer) for issuer in self._sources)

    def _status(self, issuer: str) -> IssuerStatus:
        if (keys := self._inline.get(issuer)) is None:
            return self._fetched[issuer].status()
        return IssuerStatus(issuer, ready=True, keys=len(keys.keys), left_out=keys.left_out)


async def _ended(tasks: Collection[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
