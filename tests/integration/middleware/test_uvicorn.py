"""What an application under a real uvicorn, over real TLS, learns of its callers."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import aiohttp
import pytest
import uvicorn
from uvicorn.config import WSProtocolType
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from istio_auth.authorize import Authorizer, any_id, is_id, one_of
from istio_auth.middleware import IdentityMiddleware, RequestVerifier
from istio_auth.middleware.uvicorn import ConnectionOnScope, HTTPProtocol
from istio_auth.peer import PeerRefused
from istio_auth.sources.memory import MemorySource
from istio_auth.spiffe_id import SpiffeID
from istio_auth.tls import client_context, server_context
from istio_auth.tokens.rules import TokenRule
from istio_auth.tokens.verifier import TokenVerifier
from tests.fakes.asgi import serving, telling
from tests.fakes.authority import FakeAuthority
from tests.fakes.tls import stranger
from tests.fakes.token_issuer import TokenIssuer

SERVER = SpiffeID.parse("spiffe://cluster.local/ns/shop/sa/server")
WEB = SpiffeID.parse("spiffe://cluster.local/ns/shop/sa/web")
OTHER = SpiffeID.parse("spiffe://cluster.local/ns/shop/sa/other")
PROXY = SpiffeID.parse("spiffe://cluster.local/ns/edge/sa/gateway")
FORWARDED = {"x-forwarded-client-cert": f'By={PROXY};Hash=00;Subject="";URI={WEB}'}

Seen = dict[str, object]
Parsers = tuple[type[asyncio.Protocol], WSProtocolType]


class OnH11(ConnectionOnScope, H11Protocol):  # type: ignore[misc]  # a factory takes the place of a class
    """As HTTPProtocol is where nothing faster is installed."""


class Callers:
    """A server's source, and clients with any identity of the same root."""

    def __init__(self, authority: FakeAuthority, parsers: Parsers) -> None:
        self.authority = authority
        self.http, self.ws = parsers
        self.source = self.holding(SERVER)

    def holding(self, spiffe_id: SpiffeID) -> MemorySource:
        return MemorySource.of(self.authority.svid(spiffe_id.path), self.authority.bundle())

    @asynccontextmanager
    async def serving(
        self,
        *,
        authorize: Authorizer | None = None,
        trusted: Sequence[SpiffeID] = (),
        require_caller: bool = True,
        require_certificate: bool = True,
        tokens: RequestVerifier | None = None,
        tls: bool = True,
    ) -> AsyncIterator[str]:
        app = IdentityMiddleware(
            telling, authorize=authorize, trusted_proxies=trusted, require_caller=require_caller, tokens=tokens
        )
        context = server_context(self.source, any_id(), require_client_certificate=require_certificate)
        factory: Callable[..., ssl.SSLContext] | None = (lambda *_: context) if tls else None
        config = uvicorn.Config(
            app, "127.0.0.1", 0, http=self.http, ws=self.ws, ssl_context_factory=factory, log_config=None
        )
        async with serving(uvicorn.Server(config)) as port:
            yield f"{'https' if tls else 'http'}://127.0.0.1:{port}/"

    @asynccontextmanager
    async def calling(self, spiffe_id: SpiffeID | None) -> AsyncIterator[aiohttp.ClientSession]:
        context = client_context(self.holding(spiffe_id), is_id(SERVER)) if spiffe_id else stranger(server_side=False)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session:
            yield session


@pytest.fixture(params=[(OnH11, "wsproto"), (HTTPProtocol, "websockets-sansio")], ids=["h11", "httptools"])
def callers(authority: FakeAuthority, request: pytest.FixtureRequest) -> Callers:
    return Callers(authority, request.param)


def test_the_fastest_parser_that_is_installed_is_used() -> None:
    assert issubclass(HTTPProtocol, HttpToolsProtocol)


async def get(session: aiohttp.ClientSession, url: str, headers: dict[str, str] | None = None) -> Seen | int:
    """What the application saw, or the status by which it was not asked."""
    async with session.get(url, headers=headers) as response:
        if response.status != 200:
            assert await response.read() == b""
            return response.status
        seen: Seen = json.loads(await response.text())
        return seen


async def seen(session: aiohttp.ClientSession, url: str, headers: dict[str, str] | None = None) -> Seen:
    answer = await get(session, url, headers)
    assert isinstance(answer, dict), answer
    return answer


async def test_each_request_of_a_connection_has_its_peer_and_the_state_of_the_lifespan(callers: Callers) -> None:
    async with callers.serving() as url, callers.calling(WEB) as web:
        for _ in range(2):
            answer = await seen(web, url)
            assert (answer["caller"], answer["proxy"]) == (str(WEB), "")
            assert answer["state"] == {"started": "lifespan.startup"}


async def test_a_websocket_has_the_peer_of_its_connection(callers: Callers) -> None:
    async with callers.serving() as url, callers.calling(WEB) as web, web.ws_connect(url) as socket:
        await socket.send_str("who am I?")
        assert (await socket.receive_json())["caller"] == str(WEB)


async def test_callers_at_the_same_time_are_never_taken_for_each_other(callers: Callers) -> None:
    async with callers.serving() as url, callers.calling(WEB) as web, callers.calling(OTHER) as other:
        answers = await asyncio.gather(*(seen(session, url) for session in [web, other] * 20))
        assert [answer["caller"] for answer in answers] == [str(WEB), str(OTHER)] * 20


async def test_a_callers_own_header_is_not_seen(callers: Callers) -> None:
    async with callers.serving(authorize=any_id(), trusted=[PROXY]) as url, callers.calling(OTHER) as other:
        answer = await seen(other, url, FORWARDED)
        assert (answer["caller"], answer["proxy"]) == (str(OTHER), "")
        assert set(FORWARDED).isdisjoint(answer["headers"])  # type: ignore[arg-type]  # a list of names


async def test_whom_a_trusted_proxy_serves_is_the_caller(callers: Callers, caplog: pytest.LogCaptureFixture) -> None:
    welcome = one_of(WEB, OTHER)
    async with callers.serving(authorize=welcome, trusted=[PROXY]) as url, callers.calling(PROXY) as proxy:
        answer = await seen(proxy, url, FORWARDED)
        assert (answer["caller"], answer["proxy"]) == (str(WEB), str(PROXY))
        assert await get(proxy, url) == 403
        assert "nobody calls" in caplog.text
        assert await get(proxy, url, {"x-forwarded-client-cert": "nonsense"}) == 400
        assert "malformed" in caplog.text
        async with proxy.ws_connect(url, headers=FORWARDED) as socket:
            await socket.send_str("who am I?")
            assert (await socket.receive_json())["caller"] == str(WEB)
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            await proxy.ws_connect(url)
        assert caught.value.status == 403


async def test_nobody_comes_in_without_a_certificate_unless_the_application_takes_it(callers: Callers) -> None:
    async with callers.calling(None) as anonymous:
        async with callers.serving(require_certificate=False) as url:
            assert await get(anonymous, url, FORWARDED) == 403
        async with callers.serving(
            require_certificate=False, require_caller=False, authorize=any_id(), trusted=[PROXY]
        ) as url:
            answer = await seen(anonymous, url, FORWARDED)
            assert (answer["caller"], set(FORWARDED).isdisjoint(answer["headers"])) == ("", True)  # type: ignore[arg-type]  # of JSON


async def test_without_tls_nobody_is_anybody(callers: Callers) -> None:
    async with callers.calling(None) as plain:
        async with callers.serving(tls=False) as url:
            assert await get(plain, url, FORWARDED) == 403
        async with callers.serving(tls=False, require_caller=False, authorize=any_id(), trusted=[PROXY]) as url:
            assert (await seen(plain, url, FORWARDED))["caller"] == ""


async def test_under_uvicorns_own_protocol_there_is_nobody_either(callers: Callers) -> None:
    context = server_context(callers.source, any_id())
    config = uvicorn.Config(
        IdentityMiddleware(telling), "127.0.0.1", 0, ssl_context_factory=lambda *_: context, log_config=None
    )
    async with serving(uvicorn.Server(config)) as port, callers.calling(WEB) as web:
        assert await get(web, f"https://127.0.0.1:{port}/", FORWARDED) == 403


async def test_a_rotation_needs_no_restart(callers: Callers) -> None:
    async with callers.serving() as url:
        async with callers.calling(WEB) as web:
            assert (await seen(web, url))["caller"] == str(WEB)
        old = callers.holding(WEB)
        callers.authority = FakeAuthority()
        callers.source.replace(callers.holding(SERVER).x509_context())
        async with callers.calling(WEB) as web:
            assert (await seen(web, url))["caller"] == str(WEB)
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=client_context(old, is_id(SERVER)))
        ) as behind:
            with pytest.raises(aiohttp.ClientConnectorCertificateError) as caught:
                await get(behind, url)
            assert isinstance(caught.value.certificate_error, PeerRefused)


async def test_a_token_is_refused_without_a_reason_and_accepted_with_its_claims(
    callers: Callers, caplog: pytest.LogCaptureFixture
) -> None:
    issuer = TokenIssuer()
    rule = TokenRule(issuer.issuer, {"shop"}, keys=issuer.keys())
    async with (
        TokenVerifier([rule]) as verifier,
        callers.serving(tokens=verifier) as url,
        callers.calling(WEB) as web,
    ):
        for audience, subject in (("other", None), ("shop", "someone")):
            token = issuer.token(now=datetime.now(UTC), aud=[audience], sub="someone")
            async with web.get(url, headers={"authorization": f"Bearer {token}"}) as response:
                if subject is None:
                    assert (response.status, await response.read()) == (401, b"")
                    assert response.headers["www-authenticate"] == 'Bearer error="invalid_token"'
                else:
                    answer = json.loads(await response.text())
                    assert (answer["subject"], answer["caller"]) == (subject, str(WEB))
        assert (await seen(web, url))["subject"] == ""
    assert "request refused with 401: other audience" in caplog.text
