"""An HTTPS server of token keys on loopback, with OpenID discovery, that misbehaves on request."""

from __future__ import annotations

import asyncio
import gzip
import json
import ssl
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from aiohttp import web
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from istio_auth.keys import new_private_key
from istio_auth.pem import write_certificates
from istio_auth.strict_json import JSON
from istio_auth.tokens.key_sources import DISCOVERY, DiscoveredKeys, RemoteKeys, TLSFiles
from tests.fakes.authority import FakeAuthority
from tests.fakes.tls import stranger
from tests.fakes.token_issuer import TokenIssuer

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]
KEYS = "/keys"


class KeyServer:
    """Serves from entering to leaving; known by a CA of its own.

    Args:
        folder: where the certificate of its CA is written.
        client_ca: whose client certificates it demands; without it none.
        tls: its TLS context, in place of the usual one.
    """

    def __init__(
        self, folder: Path, *, client_ca: FakeAuthority | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        self.authority = FakeAuthority("keys.test")
        self.ca = folder / f"ca-{id(self)}.pem"
        self.ca.write_bytes(write_certificates([self.authority.root]))
        self.tokens = TokenIssuer()
        self.keys: str = ""
        self.document: dict[str, JSON] = {}
        self.headers: dict[str, str] = {}
        self.answers: dict[str, Answer] = {}  # by path, in place of what is usual
        self.asked: list[str] = []
        self.requests: list[Mapping[str, str]] = []
        self.gone = 0
        self.port = 0
        self.tls = tls or self._context(client_ca)
        site = web.Application()
        site.router.add_route("GET", "/{path:.*}", self._serve)
        # Those who are made to wait must not hold up the end.
        self._runner = web.AppRunner(site, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}{KEYS}"

    @property
    def files(self) -> TLSFiles:
        return TLSFiles(ca=self.ca)

    def remote(self, path: str = KEYS) -> RemoteKeys:
        return RemoteKeys(f"https://localhost:{self.port}{path}", self.files, allow_loopback=True)

    def discovered(self) -> DiscoveredKeys:
        return DiscoveredKeys(self.files, allow_loopback=True)

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        listening = web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self.tls)
        await listening.start()
        self.port = self._runner.addresses[0][1]
        issuer = f"https://localhost:{self.port}"
        self.tokens = TokenIssuer(issuer=issuer)
        self.keys = self.tokens.jwks()
        self.document = {"issuer": issuer, "jwks_uri": self.url}
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._runner.cleanup()

    def misbehave(self, answer: Answer, path: str = KEYS) -> None:
        """Answer like this from now on."""
        self.answers[path] = answer

    def behave(self) -> None:
        """Answer as is usual again."""
        self.answers.clear()

    def _context(self, client_ca: FakeAuthority | None) -> ssl.SSLContext:
        key = new_private_key()
        leaf = self.authority.leaf(uris=(), dns_names=("localhost",))
        context = stranger(server_side=True, chain=[self.authority.sign(leaf, key.public_key())], key=key)
        if client_ca:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(cadata=write_certificates([client_ca.root]).decode())
        return context

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.path)
        self.requests.append(request.headers)
        try:
            if answer := self.answers.get(request.path):
                return await answer(request)
            text = {KEYS: self.keys, DISCOVERY: json.dumps(self.document)}.get(request.path)
            if text is None:
                return web.Response(status=404, text="nothing is here")
            return web.Response(text=text, content_type="application/json", headers=self.headers)
        except (asyncio.CancelledError, ConnectionError):  # the client has left
            self.gone += 1
            raise


def client_files(folder: Path, authority: FakeAuthority, ca: Path, *, password: bytes = b"") -> TLSFiles:
    """The files of a client with a certificate of this authority, for a server whose CA is in `ca`."""
    key = new_private_key()
    chain = [authority.sign(authority.leaf(), key.public_key())]
    certificate, private = folder / "client.pem", folder / "client.key"
    certificate.write_bytes(write_certificates(chain))
    sealed = BestAvailableEncryption(password) if password else NoEncryption()
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, sealed))
    return TLSFiles(ca, certificate, private)


def says(body: str | bytes, *, status: int = 200, content_type: str = "application/json", **headers: str) -> Answer:
    """An answer with this body."""

    async def answer(request: web.Request) -> web.StreamResponse:
        octets = body if isinstance(body, bytes) else body.encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.Response(status=status, body=octets, content_type=content_type, headers=named)

    return answer


def compressed(body: bytes) -> Answer:
    """An answer that is much larger than it comes."""
    return says(gzip.compress(body), Content_Encoding="gzip")


async def silent(request: web.Request) -> web.StreamResponse:
    """No answer, ever."""
    await asyncio.Event().wait()
    raise AssertionError


def dripping(first: bytes) -> Answer:
    """The head at once, this, and then a space now and then, for ever."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(first)
        while True:
            await response.write(b" ")
            await asyncio.sleep(0.01)

    return answer


def endless(chunk: bytes, *, most: int = 50_000_000) -> Answer:
    """This over and over, as fast as it is taken; by far the most of it must not be."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(most // len(chunk)):
            await response.write(chunk)
            await asyncio.sleep(0)  # whoever reads it lives on the same loop
        raise AssertionError("all of it was taken")

    return answer


def cut_off(body: bytes, *, promised: int) -> Answer:
    """An answer that ends before it is as long as it says."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(promised)})
        await response.prepare(request)
        await response.write(body)
        assert request.transport
        request.transport.close()
        return response

    return answer
