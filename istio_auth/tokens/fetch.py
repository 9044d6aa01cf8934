"""Fetches the keys of a token issuer over HTTPS: bounded in size, without redirects, at checked addresses.

The environment is not used (no proxies), no redirect is followed, no compression is accepted, and each address is
checked right before it is dialled (`istio_auth.tokens.addresses`). The caller bounds the time. The names of each issuer
are resolved in a thread of its own: if its name servers do not answer, nobody else waits.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from http import HTTPStatus
from typing import NamedTuple

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from istio_auth.errors import ConfigurationError, MalformedError, NotReady
from istio_auth.http_client import bounded_body, plain_reason
from istio_auth.jwks import KeySet
from istio_auth.strict_json import JSON, parse_json
from istio_auth.tokens.addresses import why_not_dialled
from istio_auth.tokens.key_sources import DiscoveredKeys, RemoteKeys, check_url, discovery_url

MAX_BYTES = 1 << 20
_GOODBYE = 1.0  # seconds
_CALLERS = aiohttp.ClientTimeout(total=None)  # the caller bounds the time
_HEADERS = {"Accept": "application/json, application/jwk-set+json", "Accept-Encoding": "identity"}
_MAX_AGE = re.compile(r"(?:^|[,\s])max-age\s*=\s*\"?(\d{1,9})", re.IGNORECASE)
_NOT_KEPT = re.compile(r"(?:^|[,\s])no-(?:cache|store)(?:$|[,\s=])", re.IGNORECASE)
_TROUBLE = (aiohttp.ClientError, OSError, ValueError)


class FetchedKeys(NamedTuple):
    """Keys that were fetched.

    Args:
        keys: the keys.
        good_for: how long they may be kept by the server's Cache-Control; None if it does not say.
    """

    keys: KeySet
    good_for: timedelta | None


class KeyFetcher:
    """Fetches the keys of one issuer. Lives on one event loop.

    Args:
        issuer: the issuer.
        source: where its keys are.
    """

    def __init__(self, issuer: str, source: RemoteKeys | DiscoveredKeys) -> None:
        self._issuer = issuer
        self._source = source
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="token-keys")
        self._sockets: list[socket.socket] = []

    async def fetch(self) -> FetchedKeys:
        """Fetch the keys now. The caller bounds the time.

        Raises:
            NotReady: there was no connection, or no answer with status 200.
            MalformedError: the answer can not be used.
        """
        url = await self.key_url()
        document, good_for = await self._get(url)
        try:
            return FetchedKeys(KeySet.from_document(document), good_for)
        except MalformedError as error:
            raise MalformedError(f"{url}: {error}") from error

    async def key_url(self) -> str:
        """Where the keys are: the URL of `RemoteKeys`, or the one that the issuer's discovery document names now.

        Raises:
            NotReady, MalformedError: as in `fetch`.
        """
        return self._source.url if isinstance(self._source, RemoteKeys) else await self._discovered()

    async def settle(self) -> None:
        """Wait up to a second for its connections to close. To be called before an event loop ends."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_GOODBYE):
                while any(each.fileno() >= 0 for each in self._sockets):  # noqa: ASYNC110  # no event tells of it
                    await asyncio.sleep(0.002)

    def close(self) -> None:
        """Shut the thread down, without waiting for a name look-up that hangs."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _discovered(self) -> str:
        """Where the issuer says that its keys are (OpenID Connect Discovery 1.0, 4.3)."""
        url = discovery_url(self._issuer)
        document, _ = await self._get(url)
        if not isinstance(document, dict) or document.get("issuer") != self._issuer:
            said = document.get("issuer") if isinstance(document, dict) else None
            raise MalformedError(f"{url}: it is about the issuer {str(said)[:200]!a}, not about {self._issuer!a}")
        keys_url = document.get("jwks_uri")
        if not isinstance(keys_url, str):
            raise MalformedError(f"{url}: it has no 'jwks_uri'")
        try:
            check_url(keys_url)
        except ConfigurationError as error:
            raise MalformedError(f"{url}: its 'jwks_uri' can not be used: {error}") from error
        return keys_url

    async def _get(self, url: str) -> tuple[JSON, timedelta | None]:
        try:
            context = await self._context()
            connector = aiohttp.TCPConnector(
                ssl=context, resolver=_Resolver(self._thread), socket_factory=self._socket, force_close=True
            )
            async with (
                aiohttp.ClientSession(connector=connector, auto_decompress=False, timeout=_CALLERS) as session,
                session.get(url, headers=_HEADERS, allow_redirects=False) as response,
            ):
                _check_head(response)
                return _parsed(await bounded_body(response, MAX_BYTES), response.content_type), _good_for(
                    response.headers
                )
        except _TROUBLE as error:
            raise NotReady(f"{url}: {plain_reason(error)}") from error
        except MalformedError as error:
            raise MalformedError(f"{url}: {error}") from error

    async def _context(self) -> ssl.SSLContext:
        tls = self._source.tls
        if isinstance(tls, ssl.SSLContext):
            return tls
        return await asyncio.get_running_loop().run_in_executor(self._thread, tls.context)

    def _socket(self, info: aiohttp.AddrInfoType) -> socket.socket:
        """Make a socket for an address that is about to be dialled; raise OSError if it must not be."""
        family, kind, protocol, _, address = info
        if reason := why_not_dialled(str(address[0]), allow_loopback=self._source.allow_loopback):
            raise OSError(reason)
        made = socket.socket(family, kind, protocol)
        self._sockets = [made, *(each for each in self._sockets if each.fileno() >= 0)]
        return made


class _Resolver(AbstractResolver):
    """The machine's own name resolution, in a given thread."""

    def __init__(self, thread: ThreadPoolExecutor) -> None:
        self._thread = thread

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(self._thread, socket.getaddrinfo, host, port, family, socket.SOCK_STREAM)
        return [
            ResolveResult(hostname=host, host=str(address[0]), port=port, family=kind, proto=protocol, flags=_LITERAL)
            for kind, _, protocol, _, address in found
        ]

    async def close(self) -> None:
        """Nothing to do: the thread belongs to the fetcher."""


_LITERAL = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV


def _check_head(response: aiohttp.ClientResponse) -> None:
    if 300 <= response.status < 400:
        to = response.headers.get("Location", "").partition("?")[0]
        raise MalformedError(f"it redirects to {to[:200]!a}, and redirects are not followed: name the URL itself")
    if response.status != HTTPStatus.OK:
        raise aiohttp.ClientPayloadError(f"it answers with status {response.status}")
    if (encoding := response.headers.get("Content-Encoding", "identity").lower()) != "identity":
        raise MalformedError(f"it answers in {encoding[:40]!a}, which was not asked for")


def _parsed(body: bytes, content_type: str) -> JSON:
    try:
        return parse_json(body, limit=MAX_BYTES)
    except MalformedError as error:
        if body.lstrip()[:1] == b"<" or "html" in content_type:
            raise MalformedError("it answers with HTML, not JSON: is the URL right, is there a login page?") from error
        raise


def _good_for(headers: Mapping[str, str]) -> timedelta | None:
    """What Cache-Control says (RFC 9111 5.2.2)."""
    said = headers.get("Cache-Control", "")
    if _NOT_KEPT.search(said):
        return timedelta()
    found = _MAX_AGE.search(said)
    return timedelta(seconds=int(found[1])) if found else None
