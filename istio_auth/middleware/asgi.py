"""The types of ASGI, and how an ASGI application refuses a request.

Callers get a status and a few headers, and no body. A WebSocket that is not accepted yet is refused by the same HTTP
response if the server can send one; otherwise it is closed, which servers turn into a 403.
"""

from __future__ import annotations

import http
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence

Headers = Sequence[tuple[bytes, bytes]]
Scope = MutableMapping[str, object]
Message = MutableMapping[str, object]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

_WEBSOCKET_RESPONSE = "websocket.http.response"
_POLICY_VIOLATION = 1008


def extensions_of(scope: Mapping[str, object]) -> Mapping[str, object]:
    """The extensions on a scope, which the server and middleware put there; empty if there are none."""
    found = scope.get("extensions")
    return found if isinstance(found, Mapping) else {}


async def refuse(scope: Scope, send: Send, status: http.HTTPStatus, headers: Headers = ()) -> None:
    """Answer a request in the place of the application."""
    prefix = ""
    if scope["type"] == "websocket":
        if _WEBSOCKET_RESPONSE not in extensions_of(scope):
            await send({"type": "websocket.close", "code": _POLICY_VIOLATION})
            return
        prefix = "websocket."
    all_headers = [(b"content-length", b"0"), *headers]
    await send({"type": f"{prefix}http.response.start", "status": int(status), "headers": all_headers})
    await send({"type": f"{prefix}http.response.body", "body": b""})
