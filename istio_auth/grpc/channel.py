"""A gRPC channel to one server, verified by SPIFFE ID: each new connection presents the SVID that is present then.

The channel is gRPC's own; it dials a portal, which dials the server over TLS. A name is resolved again for each
connection, and of several addresses the first that answers is taken (RFC 8305), so gRPC's own name resolution and load
balancing are not used. gRPC itself only tells that a connection failed. We add the reason to the status details of a
call that failed with it; the log of `istio_auth.portal` has it too.
"""

from __future__ import annotations

from abc import ABCMeta
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from typing import Any, Self, TypeAlias, cast

import grpc

from istio_auth.authorize import Authorizer
from istio_auth.clock import Clock
from istio_auth.door import Portal
from istio_auth.errors import IstioAuthError
from istio_auth.grpc.dialling import Option, channel_options, explained, portal_to
from istio_auth.grpc.loop_thread import on_own_loop
from istio_auth.x509_source import X509Source

# As the stubs of grpcio have it: what a method takes and gives is known to generated code alone.
Interceptor: TypeAlias = (
    "grpc.aio.UnaryUnaryClientInterceptor[Any, Any] | grpc.aio.UnaryStreamClientInterceptor[Any, Any]"
    " | grpc.aio.StreamUnaryClientInterceptor[Any, Any] | grpc.aio.StreamStreamClientInterceptor[Any, Any]"
)
_UnaryUnary: TypeAlias = "grpc.aio.UnaryUnaryMultiCallable[Any, Any]"
_UnaryStream: TypeAlias = "grpc.aio.UnaryStreamMultiCallable[Any, Any]"
_StreamUnary: TypeAlias = "grpc.aio.StreamUnaryMultiCallable[Any, Any]"
_StreamStream: TypeAlias = "grpc.aio.StreamStreamMultiCallable[Any, Any]"


@asynccontextmanager
async def grpc_channel(
    source: X509Source,
    authorize: Authorizer,
    address: str,
    *,
    options: Sequence[Option] = (),
    interceptors: Sequence[Interceptor] = (),
    compression: grpc.Compression | None = None,
    istio_alpn: bool = False,
    patience: timedelta = timedelta(seconds=10),
    clock: Clock | None = None,
) -> AsyncIterator[GrpcChannel]:
    """A channel to a server, open inside the `async with` block; it follows the source, so one channel is enough.

    Args:
        source: holds the SVID and the bundles; asked at each handshake.
        authorize: decides on the server's SPIFFE ID; use `is_id` with the one that it must have.
        address: the server's, as `host:port` or `[IPv6 address]:port`.
        options: gRPC's options; they win over ours.
        interceptors: as for `grpc.aio.insecure_channel`.
        compression: as for `grpc.aio.insecure_channel`.
        istio_alpn: for a server behind a sidecar in PERMISSIVE mode (see `client_context`).
        patience: how long one dial may take, TLS included.
        clock: tells when a chain must be valid; the machine's by default.

    Raises:
        ConfigurationError: the address is no `host:port`, what was given is no source or no authorizer, or no folder
            for a private socket can be made.
    """
    portal = portal_to(address, source, authorize, istio_alpn=istio_alpn, patience=patience, clock=clock)
    async with on_own_loop(portal, "istio-auth-portal"):
        channel = grpc.aio.insecure_channel(
            portal.target,
            options=channel_options(portal, options),
            compression=compression,
            interceptors=cast("Sequence[grpc.aio.ClientInterceptor]", interceptors),
        )
        async with channel:
            yield GrpcChannel(channel, portal)


class GrpcChannel(grpc.aio.Channel):
    """A `grpc.aio.Channel` whose calls tell why they were not answered.

    Args:
        channel: gRPC's own.
        portal: what it dials.
    """

    def __init__(self, channel: grpc.aio.Channel, portal: Portal) -> None:
        self._channel = channel
        self._portal = portal

    @property
    def last_error(self) -> IstioAuthError | None:
        """Why the latest connection failed; None once a server has answered."""
        return self._portal.last_error

    def unary_unary(self, *args: object, **kwargs: object) -> _UnaryUnary:
        """A method with one request and one response, as of `grpc.aio.Channel`."""
        return cast("_UnaryUnary", self._method("unary_unary", _UnaryUnaryCall, args, kwargs))

    def unary_stream(self, *args: object, **kwargs: object) -> _UnaryStream:
        """A method with one request and a stream of responses."""
        return cast("_UnaryStream", self._method("unary_stream", _UnaryStreamCall, args, kwargs))

    def stream_unary(self, *args: object, **kwargs: object) -> _StreamUnary:
        """A method with a stream of requests and one response."""
        return cast("_StreamUnary", self._method("stream_unary", _StreamUnaryCall, args, kwargs))

    def stream_stream(self, *args: object, **kwargs: object) -> _StreamStream:
        """A method with a stream both ways."""
        return cast("_StreamStream", self._method("stream_stream", _StreamStreamCall, args, kwargs))

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:  # the base's signature
        """Whether it is connected."""
        return self._channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Wait until the state is not `last_observed_state`."""
        await self._channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """Wait until it is connected."""
        await self._channel.channel_ready()

    async def close(self, grace: float | None = None) -> None:
        """Take no more calls, and end those in flight after this many seconds; at once if it is None."""
        await self._channel.close(grace)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    def _method(
        self, kind: str, wrap: type[_Call], args: Sequence[object], kwargs: Mapping[str, object]
    ) -> Callable[..., _Call]:
        method = getattr(self._channel, kind)(*args, **kwargs)
        return lambda *given, **named: wrap(method(*given, **named), self._portal)


class _Call:
    """A call of gRPC's, with our reason in its status details; everything else is gRPC's."""

    def __init__(self, call: grpc.aio.Call, portal: Portal) -> None:
        self._call = call
        self._portal = portal

    def __getattr__(self, name: str) -> object:
        return getattr(self._call, name)

    def __repr__(self) -> str:
        return repr(self._call)

    async def details(self) -> str | None:
        return explained(self._portal, await self._call.code(), await self._call.details())

    async def wait_for_connection(self) -> None:
        with self._explaining():
            await self._call.wait_for_connection()

    def add_done_callback(self, callback: Callable[[object], None]) -> None:
        self._call.add_done_callback(lambda _call: callback(self))

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        try:
            yield
        except grpc.aio.AioRpcError as error:
            details = explained(self._portal, error.code(), error.details())
            if details == error.details():
                raise
            raise grpc.aio.AioRpcError(
                error.code(),
                error.initial_metadata(),
                cast("grpc.aio.Metadata", error.trailing_metadata()),
                details,
                error.debug_error_string(),
            ) from self._portal.last_error


class _UnaryResponse(_Call):
    def __await__(self) -> Generator[object, None, object]:
        return self._response().__await__()

    async def _response(self) -> object:
        with self._explaining():
            return await cast("Awaitable[object]", self._call)


class _StreamResponse(_Call):
    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> object:
        with self._explaining():
            return await anext(aiter(cast("AsyncIterator[object]", self._call)))

    async def read(self) -> object:
        with self._explaining():
            return await cast("grpc.aio.UnaryStreamCall[object, object]", self._call).read()


class _StreamRequest(_Call):
    async def write(self, request: object) -> None:
        with self._explaining():
            await cast("grpc.aio.StreamUnaryCall[object, object]", self._call).write(request)


class _UnaryUnaryCall(_UnaryResponse): ...


class _UnaryStreamCall(_StreamResponse): ...


class _StreamUnaryCall(_StreamRequest, _UnaryResponse): ...


class _StreamStreamCall(_StreamRequest, _StreamResponse): ...


# For `isinstance`; real base classes would hide what `__getattr__` finds.
cast("ABCMeta", grpc.aio.UnaryUnaryCall).register(_UnaryUnaryCall)
cast("ABCMeta", grpc.aio.UnaryStreamCall).register(_UnaryStreamCall)
cast("ABCMeta", grpc.aio.StreamUnaryCall).register(_StreamUnaryCall)
cast("ABCMeta", grpc.aio.StreamStreamCall).register(_StreamStreamCall)
