"""The asyncio channel to a gRPC server: calls to one server, with every failure as an `IstioAuthError`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from datetime import timedelta
from typing import Self, TypeVar

import grpc
from google.protobuf.message import Message

from istio_auth.door import Portal
from istio_auth.errors import IstioAuthError, NotReady
from istio_auth.rpc.answers import channel_options, parsed, strayed
from istio_auth.rpc.forking import starting
from istio_auth.rpc.status import error_of

Response = TypeVar("Response", bound=Message)


class Channel:
    """A client's channel to one server: through a `Portal`, or to a gRPC target without TLS. An async context manager.

    Args:
        way: the portal, or a gRPC target such as `unix:/run/agent.sock`.
        max_response_bytes: the largest response that is read.
    """

    def __init__(self, way: Portal | str, *, max_response_bytes: int = 4 << 20) -> None:
        self._portal = way if isinstance(way, Portal) else None
        self._target = way if isinstance(way, str) else ""
        self._max_response_bytes = max_response_bytes
        self._channel: grpc.aio.Channel | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End the connection and the calls on it; a later call opens a new one."""
        if self._channel is not None:
            await self._channel.close(None)
            self._channel = None

    async def unary(
        self,
        path: str,
        request: Message,
        response_type: type[Response],
        *,
        timeout: timedelta,  # noqa: ASYNC109  # it travels with the call
        metadata: Sequence[tuple[str, str]] = (),
    ) -> Response:
        """Call a method with one request and one response.

        Args:
            path: `/package.Service/Method`.
            request: the request.
            response_type: the message that comes back.
            timeout: how long the call may take.
            metadata: the metadata of the request.

        Raises:
            IstioAuthError: it failed; `UnknownMethod` if the server does not have the method.
        """
        call = self._open().unary_unary(path, None, None)(
            request.SerializeToString(), timeout=timeout.total_seconds(), metadata=tuple(metadata)
        )
        try:
            return parsed(path, response_type, await call)
        except grpc.aio.AioRpcError as error:
            raise self._failure(path, error) from error
        except asyncio.CancelledError as error:
            raise _unless_cancelled(path, error) from None

    async def stream(
        self,
        path: str,
        requests: AsyncIterator[Message],
        response_type: type[Response],
        *,
        metadata: Sequence[tuple[str, str]] = (),
    ) -> AsyncGenerator[Response]:
        """Call a method with streams both ways; stops when the server ends its stream without error.

        Raises:
            IstioAuthError: it failed (see `unary`).
        """
        call = self._open().stream_stream(path, None, None)(
            (request.SerializeToString() async for request in requests), metadata=tuple(metadata)
        )
        try:
            async for response in call:
                yield parsed(path, response_type, response)
        except grpc.aio.AioRpcError as error:
            raise self._failure(path, error) from error
        except asyncio.CancelledError as error:
            raise _unless_cancelled(path, error) from None
        finally:
            call.cancel()

    def _open(self) -> grpc.aio.Channel:
        if self._channel is None:
            starting()  # only for its check: gRPC's asyncio interface has no way to stop for a fork
            options = channel_options(self._max_response_bytes)
            if self._portal is not None:
                options += self._portal.channel_options
            self._channel = grpc.aio.insecure_channel(
                self._portal.target if self._portal is not None else self._target, options=options
            )
        return self._channel

    def _failure(self, path: str, error: grpc.aio.AioRpcError) -> IstioAuthError:
        """The error for a failed call. If the portal did not reach the server, its reason is told and not gRPC's."""
        found = error_of(path, error)
        if isinstance(found, NotReady) and self._portal is not None and self._portal.unreached is not None:
            return NotReady(f"{path}: {self._portal.unreached}")
        return found


def _unless_cancelled(path: str, error: asyncio.CancelledError) -> BaseException:
    """The error for a closed channel: gRPC raises CancelledError in its callers, although nobody cancelled them."""
    return NotReady(f"{path}: the channel was closed") if strayed(error) else error
