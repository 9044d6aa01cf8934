"""ASGI middleware that tells an application who calls: by TLS, by a trusted proxy in front of it, and by a token.

The calling workload is the peer of the TLS connection, which the server has put on the scope (see `istio_auth.peer` and
`istio_auth.middleware.uvicorn`). If that peer is a trusted proxy, the caller is the client that the proxy names in the
last element of `x-forwarded-client-cert`. If the proxy names none, there is no caller: the proxy's own identity is not
used. If the peer is no trusted proxy, the header is removed before the application can read it. A verified token says
on whose behalf the workload calls; it never replaces a missing caller.

Requests are refused here: with 400 if the header is malformed or ambiguous, with 401 for the token, with 403 for the
caller, and with 503 while the keys of the token's issuer are not there. The reason is only in our log.
"""

from __future__ import annotations

import http
import logging
import math
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Protocol, cast

from istio_auth.authorize import Authorizer, admit
from istio_auth.errors import Code, ConfigurationError, IstioAuthError, NotAuthenticated, NotAuthorized
from istio_auth.middleware.asgi import Application, Headers, Receive, Scope, Send, extensions_of, refuse
from istio_auth.peer import ASGI_EXTENSION, VerifiedPeer, WithScope, verified_peer
from istio_auth.spiffe_id import SpiffeID
from istio_auth.xfcc import InvalidXFCC, forwarded_id

if TYPE_CHECKING:
    from istio_auth.tokens import Claims

_LOG = logging.getLogger(__name__)

PROXY_EXTENSION = "istio_auth.proxy"
CLAIMS_EXTENSION = "istio_auth.claims"

_OURS = {ASGI_EXTENSION, PROXY_EXTENSION, CLAIMS_EXTENSION}
_XFCC = b"x-forwarded-client-cert"
_STATUS = {
    Code.MALFORMED: http.HTTPStatus.BAD_REQUEST,
    Code.NOT_AUTHENTICATED: http.HTTPStatus.UNAUTHORIZED,
    Code.NOT_AUTHORIZED: http.HTTPStatus.FORBIDDEN,
    Code.NOT_READY: http.HTTPStatus.SERVICE_UNAVAILABLE,
    Code.EXHAUSTED: http.HTTPStatus.SERVICE_UNAVAILABLE,
}


class RequestVerifier(Protocol):
    """Finds the token of a request and verifies it: `istio_auth.tokens.verifier.TokenVerifier`."""

    async def verify(self, headers: Headers, query: bytes) -> Claims | None:
        """The claims of the request's token; None if it has none.

        Args:
            headers: names in lower case, and values.
            query: the query string, without `?`.

        Raises:
            NotAuthenticated: there is a token, and it is refused.
            NotReady: the keys of its issuer are not there.
        """
        ...


class IdentityMiddleware:
    """Puts caller and claims on the scope: read them with `istio_auth.peer_id` and `token_claims`.

    Args:
        app: the application.
        authorize: decides on each caller; it is not asked if there is none. With trusted proxies it must be given,
            because the authorizer of the TLS context has only seen the proxy.
        trusted_proxies: the SPIFFE IDs of the proxies that we believe when they name their client.
        require_caller: False lets requests without a caller in: without TLS, without client certificate, or from a
            trusted proxy whose client has none.
        tokens: verifies the tokens of requests. Whoever made it must enter and leave it. None leaves tokens to the
            application.

    Raises:
        ConfigurationError: proxies are trusted, and no `authorize` is given.
    """

    def __init__(
        self,
        app: Application,
        *,
        authorize: Authorizer | None = None,
        trusted_proxies: Collection[SpiffeID] = (),
        require_caller: bool = True,
        tokens: RequestVerifier | None = None,
    ) -> None:
        if trusted_proxies and authorize is None:
            raise ConfigurationError(
                "behind a trusted proxy an authorizer must decide on callers: any_id(), if all are"
            )
        self._app = app
        self._authorize = authorize
        self._trusted_proxies = frozenset(trusted_proxies)
        self._require_caller = require_caller
        self._tokens = tokens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on to the application, or refuse it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        try:
            judged = await self._judged(scope)
        except IstioAuthError as error:
            status = _STATUS.get(error.code, http.HTTPStatus.INTERNAL_SERVER_ERROR)
            _LOG.warning("request refused with %d: %s", status, error)
            await refuse(scope, send, status, _hints(status, error))
        else:
            await self._app(judged, receive, send)

    async def _judged(self, scope: Scope) -> Scope:
        """The scope as the application sees it.

        Raises:
            InvalidXFCC: the header of a trusted proxy is malformed, or does not name exactly one caller.
            NotAuthorized: the caller is not welcome, or there is none.
            NotAuthenticated: the token is refused.
            NotReady: the keys of the token's issuer are not there.
        """
        headers = [header for header in cast("Headers", scope.get("headers", ())) if not _resembles_xfcc(header)]
        extensions = {name: value for name, value in extensions_of(scope).items() if name not in _OURS}
        caller = direct = _direct_peer(scope)
        if direct is not None and direct.spiffe_id in self._trusted_proxies:
            caller = _forwarded(headers, direct.spiffe_id)
            extensions[PROXY_EXTENSION] = direct
        else:
            headers = [header for header in headers if not _is_xfcc(header)]
        self._welcome(caller)
        if caller is not None:
            extensions[ASGI_EXTENSION] = caller
        if self._tokens is not None:
            query = cast("bytes", scope.get("query_string", b""))
            if (claims := await self._tokens.verify(headers, query)) is not None:
                extensions[CLAIMS_EXTENSION] = claims
        return {**scope, "headers": headers, "extensions": extensions}

    def _welcome(self, caller: VerifiedPeer | None) -> None:
        if caller is None or caller.spiffe_id is None:
            if self._require_caller:
                raise NotAuthorized("nobody calls: no TLS on the scope that proves a SPIFFE ID, and none is forwarded")
        elif self._authorize is not None:
            admit(caller.spiffe_id, self._authorize)


def token_claims(request: WithScope | Scope) -> Claims | None:
    """The claims of the verified token of an ASGI request (or scope); None if it has none."""
    scope = request if isinstance(request, Mapping) else request.scope
    return cast("Claims | None", extensions_of(scope).get(CLAIMS_EXTENSION))


def _hints(status: http.HTTPStatus, error: IstioAuthError) -> Headers:
    """The headers of a refusal."""
    if status is http.HTTPStatus.UNAUTHORIZED:
        return [(b"www-authenticate", b'Bearer error="invalid_token"')]  # RFC 6750, 3
    if error.retry_after is not None:
        return [(b"retry-after", str(math.ceil(error.retry_after.total_seconds())).encode())]
    return []


def _direct_peer(scope: Scope) -> VerifiedPeer | None:
    try:
        return verified_peer(scope)
    except NotAuthenticated:
        return None


def _forwarded(headers: Headers, proxy: SpiffeID) -> VerifiedPeer | None:
    lines = [header[1] for header in headers if _is_xfcc(header)]
    if len(lines) > 1:
        raise InvalidXFCC(f"{proxy} sent x-forwarded-client-cert {len(lines)} times")
    caller = forwarded_id(lines[0].decode("latin-1"), proxy=proxy) if lines else None
    return None if caller is None else VerifiedPeer(caller, ())


def _is_xfcc(header: tuple[bytes, bytes]) -> bool:
    return header[0].lower() == _XFCC


def _resembles_xfcc(header: tuple[bytes, bytes]) -> bool:
    """Whether an application could take this for the header: gateways to WSGI make no difference between `-` and `_`.

    Proxies do make one: they pass such a header on as the client wrote it.
    """
    return b"_" in header[0] and header[0].lower().replace(b"_", b"-") == _XFCC
