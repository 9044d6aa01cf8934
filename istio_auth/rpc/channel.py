"""The only place where gRPC channels are made."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from typing import Self, TypeVar

from google.protobuf.message import Message

from istio_auth.door import Portal
from istio_auth.errors import NotReady

Response = TypeVar("Response", bound=Message)


class Channel:
    """A client's way to one server. An async context manager."""

    def __init__(self, way: Portal | str, *, max_response_bytes: int = 4 << 20) -> None:
        self._way = way

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End."""

    async def unary(
        self,
        path: str,
        request: Message,
        response_type: type[Response],
        *,
        timeout: timedelta,
        metadata: Sequence[tuple[str, str]] = (),
    ) -> Response:
        """Call a method with one request and one response."""
        raise NotReady("in work")

    def stream(
        self,
        path: str,
        requests: AsyncIterator[Message],
        response_type: type[Response],
        *,
        metadata: Sequence[tuple[str, str]] = (),
    ) -> AsyncIterator[Response]:
        """Call a method with a stream both ways."""
        raise NotReady("in work")
