"""Who calls is what TLS proves, or what a trusted proxy says, and never what a stranger writes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import cast

import pytest

from istio_auth.authorize import Authorizer, any_id, is_id, one_of
from istio_auth.errors import ConfigurationError, NotAuthenticated, NotReady
from istio_auth.middleware import IdentityMiddleware, RequestVerifier, token_claims
from istio_auth.middleware.asgi import Headers, Message, Receive, Scope, Send
from istio_auth.middleware.identity import PROXY_EXTENSION
from istio_auth.peer import ASGI_EXTENSION, VerifiedPeer, peer_id
from istio_auth.spiffe_id import SpiffeID
from istio_auth.tokens import Claims

PROXY = SpiffeID.parse("spiffe://cluster.local/ns/edge/sa/gateway")
WEB = SpiffeID.parse("spiffe://cluster.local/ns/shop/sa/web")
OTHER = SpiffeID.parse("spiffe://cluster.local/ns/shop/sa/other")
XFCC = b"x-forwarded-client-cert"
CLAIMS = Claims("https://issuer.test", "someone", ("shop",), datetime(2030, 1, 1, tzinfo=UTC))


@dataclass
class Application:
    """Keeps the scopes it was served."""

    scopes: list[Scope] = field(default_factory=list)

    async def __call__(self, scope: Scope, _receive: Receive, send: Send) -> None:
        self.scopes.append(scope)
        await send({"type": "http.response.start", "status": 200})

    @property
    def caller(self) -> SpiffeID | None:
        (scope,) = self.scopes
        try:
            return peer_id(scope)
        except NotAuthenticated:
            return None

    @property
    def headers(self) -> Headers:
        return cast("Headers", self.scopes[0]["headers"])


@dataclass
class Verifier:
    """Answers what it is told to."""

    answer: Claims | Exception | None
    asked: list[tuple[Headers, bytes]] = field(default_factory=list)

    async def verify(self, headers: Headers, query: bytes) -> Claims | None:
        self.asked.append((headers, query))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def request(
    direct: SpiffeID | None, *headers: tuple[bytes, bytes], kind: str = "http", extensions: Sequence[str] = ()
) -> Scope:
    """A request over TLS from this peer, or without TLS."""
    told: dict[str, object] = {name: {} for name in extensions}
    if direct:
        told[ASGI_EXTENSION] = VerifiedPeer(direct, ())
    return {"type": kind, "path": "/", "query_string": b"a=b", "headers": list(headers), "extensions": told}


async def serve(
    scope: Scope,
    *,
    authorize: Authorizer | None = None,
    trusted: Sequence[SpiffeID] = (),
    require_caller: bool = False,
    tokens: RequestVerifier | None = None,
) -> tuple[Application, list[Message]]:
    """What the application was served, and what the client is sent."""
    app, sent = Application(), []

    async def receive() -> Message:
        raise AssertionError("nobody reads here")

    async def send(message: Message) -> None:
        sent.append(message)

    middleware = IdentityMiddleware(
        app, authorize=authorize, trusted_proxies=trusted, require_caller=require_caller, tokens=tokens
    )
    await middleware(scope, receive, send)
    return app, sent


def forwarded(caller: SpiffeID | str, by: SpiffeID = PROXY) -> tuple[bytes, bytes]:
    return XFCC, f'By={by};Hash=00;Subject="";URI={caller}'.encode()


class TestACallerByTLS:
    async def test_is_on_the_scope(self) -> None:
        app, _ = await serve(request(WEB), require_caller=True)
        assert app.caller == WEB
        assert PROXY_EXTENSION not in cast("dict[str, object]", app.scopes[0]["extensions"])

    async def test_does_not_speak_for_others_by_a_header(self) -> None:
        app, _ = await serve(request(WEB, forwarded(OTHER, by=WEB)), authorize=any_id(), trusted=[PROXY])
        assert app.caller == WEB

    @pytest.mark.parametrize(
        "name", [XFCC, b"x_forwarded_client_cert", b"X-Forwarded-Client-Cert", b"x-forwarded_client-cert"]
    )
    async def test_has_its_header_taken_away_however_it_is_spelled(self, name: bytes) -> None:
        app, _ = await serve(request(WEB, (b"host", b"web"), (name, b"URI=spiffe://a/b"), (name, b"x"), (b"via", b"1")))
        assert app.headers == [(b"host", b"web"), (b"via", b"1")]

    async def test_is_refused_if_the_authorizer_does_not_welcome_it(self, caplog: pytest.LogCaptureFixture) -> None:
        app, sent = await serve(request(OTHER), authorize=is_id(WEB))
        assert (app.scopes, sent[0]["status"]) == ([], 403)
        assert f"{OTHER} is refused" in caplog.text
        app, _ = await serve(request(WEB), authorize=is_id(WEB))
        assert app.caller == WEB


class TestNobody:
    async def test_is_refused_unless_the_application_takes_it(self, caplog: pytest.LogCaptureFixture) -> None:
        app, sent = await serve(request(None), require_caller=True)
        assert (app.scopes, sent[0]["status"]) == ([], 403)
        assert "nobody calls" in caplog.text
        app, _ = await serve(request(None), require_caller=False)
        assert app.caller is None

    async def test_is_who_shows_no_certificate(self) -> None:
        anonymous = request(None)
        anonymous["extensions"] = {ASGI_EXTENSION: VerifiedPeer(None, ())}
        assert (await serve(anonymous, require_caller=True))[1][0]["status"] == 403
        assert (await serve(anonymous, authorize=is_id(WEB)))[0].caller is None

    async def test_becomes_somebody_by_no_header(self) -> None:
        app, _ = await serve(request(None, forwarded(WEB)), authorize=any_id(), trusted=[PROXY])
        assert app.caller is None
        assert app.headers == []

    async def test_becomes_somebody_by_no_scope_without_extensions(self) -> None:
        bare = request(None, forwarded(WEB))
        del bare["extensions"]
        assert (await serve(bare, authorize=any_id(), trusted=[PROXY]))[0].caller is None


class TestACallerBehindATrustedProxy:
    async def test_is_whom_the_proxy_saw(self) -> None:
        app, _ = await serve(request(PROXY, forwarded(WEB)), authorize=is_id(WEB), trusted=[PROXY], require_caller=True)
        assert app.caller == WEB
        extensions = cast("dict[str, object]", app.scopes[0]["extensions"])
        assert extensions[PROXY_EXTENSION] == VerifiedPeer(PROXY, ())
        assert app.headers == [forwarded(WEB)]

    async def test_is_not_whom_the_client_writes_before_it(self) -> None:
        line = (XFCC, forwarded(OTHER)[1] + b"," + forwarded(WEB)[1])
        assert (await serve(request(PROXY, line), authorize=any_id(), trusted=[PROXY]))[0].caller == WEB

    @pytest.mark.parametrize("saw", [None, WEB])
    async def test_is_not_whom_the_client_writes_in_a_spelling_that_proxies_pass_on(self, saw: SpiffeID | None) -> None:
        headers = [forwarded(saw)] if saw else []
        spelled = (b"x_forwarded_client_cert", forwarded(OTHER)[1])
        app, _ = await serve(request(PROXY, spelled, *headers), authorize=any_id(), trusted=[PROXY])
        assert app.caller == saw
        assert app.headers == headers

    @pytest.mark.parametrize("headers", [(), ((XFCC, f'By={PROXY};Hash=00;Subject="";URI='.encode()),)])
    async def test_is_nobody_if_the_proxy_saw_nobody_and_never_the_proxy(
        self, headers: tuple[tuple[bytes, bytes], ...]
    ) -> None:
        app, _ = await serve(request(PROXY, *headers), authorize=any_id(), trusted=[PROXY])
        assert app.caller is None
        app, sent = await serve(request(PROXY, *headers), authorize=any_id(), trusted=[PROXY], require_caller=True)
        assert (app.scopes, sent[0]["status"]) == ([], 403)

    async def test_must_be_welcome_itself(self) -> None:
        app, sent = await serve(request(PROXY, forwarded(OTHER)), authorize=one_of(WEB, PROXY), trusted=[PROXY])
        assert (app.scopes, sent[0]["status"]) == ([], 403)
        app, _ = await serve(request(PROXY, forwarded(WEB)), authorize=one_of(WEB, PROXY), trusted=[PROXY])
        assert app.caller == WEB

    @pytest.mark.parametrize(
        ("headers", "reason"),
        [
            ((forwarded(WEB), forwarded(WEB)), "2 times"),
            ((forwarded(OTHER, by=OTHER),), "not what it saw itself"),
            ((forwarded("spiffe://cluster.local"),), "no workload"),
            (((XFCC, b"URI=\xff"),), "no SPIFFE ID"),
            (((XFCC, b"a" * 70_000),), "at most"),
            (((XFCC, b""),), "empty"),
        ],
    )
    async def test_is_refused_if_the_proxy_leaves_doubt(
        self, headers: tuple[tuple[bytes, bytes], ...], reason: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        app, sent = await serve(request(PROXY, *headers), authorize=any_id(), trusted=[PROXY])
        assert (app.scopes, sent[0]["status"]) == ([], 400)
        assert reason in caplog.text

    def test_needs_somebody_who_decides_on_it(self) -> None:
        with pytest.raises(ConfigurationError, match="an authorizer must decide"):
            IdentityMiddleware(Application(), trusted_proxies=[PROXY])


class TestATokensClaims:
    async def test_are_on_the_scope_beside_the_caller(self) -> None:
        verifier = Verifier(CLAIMS)
        app, _ = await serve(request(WEB, (b"authorization", b"Bearer x")), tokens=verifier)
        assert token_claims(app.scopes[0]) == CLAIMS
        assert app.caller == WEB
        assert verifier.asked == [([(b"authorization", b"Bearer x")], b"a=b")]

    async def test_are_none_without_a_token_or_a_verifier(self) -> None:
        assert token_claims((await serve(request(WEB), tokens=Verifier(None)))[0].scopes[0]) is None
        assert token_claims((await serve(request(WEB)))[0].scopes[0]) is None

    async def test_of_a_refused_token_are_a_401_whose_reason_only_the_log_tells(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        app, sent = await serve(request(WEB), tokens=Verifier(NotAuthenticated("expired: ended yesterday")))
        assert app.scopes == []
        assert sent == [
            {
                "type": "http.response.start",
                "status": 401,
                "headers": [(b"content-length", b"0"), (b"www-authenticate", b'Bearer error="invalid_token"')],
            },
            {"type": "http.response.body", "body": b""},
        ]
        assert "expired: ended yesterday" in caplog.text

    async def test_wait_for_keys_that_are_not_there_yet(self) -> None:
        _, sent = await serve(request(WEB), tokens=Verifier(NotReady("no keys of the issuer yet")))
        assert (sent[0]["status"], sent[0]["headers"]) == (503, [(b"content-length", b"0")])
        later = NotReady("no keys of the issuer yet", retry_after=timedelta(seconds=1.5))
        _, sent = await serve(request(WEB), tokens=Verifier(later))
        assert sent[0]["headers"] == [(b"content-length", b"0"), (b"retry-after", b"2")]

    async def test_do_not_make_up_for_a_missing_caller(self) -> None:
        verifier = Verifier(CLAIMS)
        app, sent = await serve(request(None), require_caller=True, tokens=verifier)
        assert (app.scopes, sent[0]["status"], verifier.asked) == ([], 403, [])

    async def test_are_not_what_somebody_else_left_on_the_scope(self) -> None:
        scope = request(WEB)
        scope["extensions"] = {**cast("dict[str, object]", scope["extensions"]), "istio_auth.claims": CLAIMS}
        assert token_claims((await serve(scope))[0].scopes[0]) is None


class TestWebSocketsAndLifespan:
    async def test_a_websocket_has_its_caller_too(self) -> None:
        assert (await serve(request(WEB, kind="websocket"), require_caller=True))[0].caller == WEB

    async def test_a_websocket_is_refused_by_an_http_response_where_the_server_can_send_one(self) -> None:
        scope = request(None, kind="websocket", extensions=["websocket.http.response"])
        app, sent = await serve(scope, require_caller=True)
        assert app.scopes == []
        assert [(message["type"], message.get("status")) for message in sent] == [
            ("websocket.http.response.start", 403),
            ("websocket.http.response.body", None),
        ]

    async def test_a_websocket_is_closed_where_it_can_not(self) -> None:
        _, sent = await serve(request(None, kind="websocket"), require_caller=True)
        assert sent == [{"type": "websocket.close", "code": 1008}]

    async def test_what_asgi_may_bring_one_day_comes_from_somebody_too(self) -> None:
        scope: Scope = {"type": "webtransport"}
        assert (await serve(scope, require_caller=True))[0].scopes == []
        scope["extensions"] = {ASGI_EXTENSION: VerifiedPeer(WEB, ())}
        assert (await serve(scope, require_caller=True))[0].caller == WEB

    async def test_the_lifespan_passes_untouched(self) -> None:
        scope: Scope = {"type": "lifespan", "state": {}}
        app, _ = await serve(scope, require_caller=True)
        assert app.scopes[0] is scope


async def test_what_other_middleware_and_the_server_said_stays() -> None:
    scope: Scope = {**request(WEB, extensions=["http.response.push"]), "state": {"pool": 1}}
    app, _ = await serve(scope)
    assert app.scopes[0]["state"] is scope["state"]
    assert "http.response.push" in cast("dict[str, object]", app.scopes[0]["extensions"])
    assert cast("dict[str, object]", scope["extensions"])[ASGI_EXTENSION] == VerifiedPeer(WEB, ())


async def test_no_refusal_is_louder_than_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    await serve(request(None), require_caller=True)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
