"""uvicorn in the loop of a test, and an application that tells what it sees."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import uvicorn

from istio_auth.errors import NotAuthenticated
from istio_auth.middleware import token_claims
from istio_auth.middleware.asgi import Headers, Receive, Scope, Send, extensions_of
from istio_auth.middleware.identity import PROXY_EXTENSION
from istio_auth.peer import VerifiedPeer, peer_id


@asynccontextmanager
async def serving(server: uvicorn.Server) -> AsyncIterator[int]:
    """Have uvicorn serve at a port, without taking the signals of the test."""
    server.config.load()
    server.lifespan = server.config.lifespan_class(server.config)
    await server.startup()
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        await server.shutdown()


async def telling(scope: Scope, receive: Receive, send: Send) -> None:
    """An application that answers requests, and a message of a WebSocket, with what it sees."""
    if scope["type"] == "lifespan":
        cast("dict[str, object]", scope["state"])["started"] = (await receive())["type"]
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
    elif scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": _seen(scope).encode()})
    else:
        await receive()
        await send({"type": "websocket.accept"})
        await receive()
        await send({"type": "websocket.send", "text": _seen(scope)})
        await send({"type": "websocket.close"})


def _seen(scope: Scope) -> str:
    try:
        caller = str(peer_id(scope))
    except NotAuthenticated:
        caller = ""
    proxy = cast("VerifiedPeer | None", extensions_of(scope).get(PROXY_EXTENSION))
    claims = token_claims(scope)
    return json.dumps(
        {
            "caller": caller,
            "proxy": str(proxy.spiffe_id) if proxy else "",
            "subject": claims.subject if claims else "",
            "headers": [name.decode() for name, _ in cast("Headers", scope["headers"])],
            "state": scope["state"],
        }
    )
