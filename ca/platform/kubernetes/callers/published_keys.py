"""The keys with which the cluster signs service-account tokens, as its API server publishes them (OpenID discovery).

They are read at the start, every few minutes, and soon after a token could not be verified offline. While they can not
be read, the last ones stay in use and reading is tried again soon. They do not expire: how long tokens are verified
without the API server depends on the watched caches alone.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn

import structlog

from ca.platform.kubernetes.api.client import KubernetesAPI
from ca.platform.kubernetes.api.objects import text
from istio_auth.errors import IstioAuthError, MalformedError
from istio_auth.jwks import KeySet

_DISCOVERY, _KEYS = "/.well-known/openid-configuration", "/openid/v1/jwks"
_EVERY = timedelta(minutes=5)
_AT_MOST_EVERY = timedelta(seconds=10)  # however many bad tokens strangers show
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class IssuerKeys:
    """What was read last.

    Args:
        issuer: the cluster's issuer of service-account tokens.
        keys: its keys.
    """

    issuer: str
    keys: KeySet


class PublishedKeys:
    """Keeps the keys. Lives on one event loop.

    Args:
        api: the API server.
        every: how often they are read.
        at_most_every: the shortest time between two reads, if somebody asks or if the last read failed.

    Attributes:
        known: the keys read last; None before they could be read.
    """

    def __init__(
        self, api: KubernetesAPI, *, every: timedelta = _EVERY, at_most_every: timedelta = _AT_MOST_EVERY
    ) -> None:
        self.known: IssuerKeys | None = None
        self._api = api
        self._every = every
        self._at_most_every = at_most_every
        self._wanted = asyncio.Event()
        self._fault: str | None = None

    def ask_soon(self) -> None:
        """Read them again, but not too often: a token could not be verified offline, perhaps for lack of a key."""
        self._wanted.set()

    async def run(self) -> NoReturn:
        """Read them whenever it is time, for ever."""
        while True:
            await self.read()
            await asyncio.sleep(self._at_most_every.total_seconds())
            if self._fault is None:
                with suppress(TimeoutError):
                    async with asyncio.timeout((self._every - self._at_most_every).total_seconds()):
                        await self._wanted.wait()
            self._wanted.clear()

    async def read(self) -> None:
        """Read them now; a fault is reported once, and the last ones stay."""
        try:
            issuer = text(await self._api.read(_DISCOVERY), "issuer")
            if not issuer:
                raise MalformedError(f"{_DISCOVERY} names no issuer")
            keys = KeySet.from_document(await self._api.read(_KEYS))
        except IstioAuthError as error:
            if self._fault != str(error):
                self._fault = str(error)
                _log.warning("the keys of service-account tokens can not be read", reason=self._fault)
            return
        if self.known != IssuerKeys(issuer, keys):
            _log.info("the keys of service-account tokens are read", issuer=issuer, keys=len(keys.keys))
        self.known, self._fault = IssuerKeys(issuer, keys), None
