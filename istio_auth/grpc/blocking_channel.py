"""The gRPC channel for code without an event loop, otherwise as in `istio_auth.grpc.channel`."""

from __future__ import annotations

from abc import ABCMeta
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Protocol, Self, TypeAlias, cast

import grpc

from istio_auth.authorize import Authorizer
from istio_auth.clock import Clock
from istio_auth.door import Portal
from istio_auth.errors import IstioAuthError
from istio_auth.grpc.dialling import Option, channel_options, explained, portal_to
from istio_auth.grpc.loop_thread import LoopThread
from istio_auth.x509_source import X509Source

# As the stubs of grpcio have it: what a method takes and gives is known to generated code alone.
_UnaryUnary: TypeAlias = "grpc.UnaryUnaryMultiCallable[Any, Any]"
_UnaryStream: TypeAlias = "grpc.UnaryStreamMultiCallable[Any, Any]"
_StreamUnary: TypeAlias = "grpc.StreamUnaryMultiCallable[Any, Any]"
_StreamStream: TypeAlias = "grpc.StreamStreamMultiCallable[Any, Any]"


@contextmanager
def blocking_grpc_channel(
    source: X509Source,
    authorize: Authorizer,
    address: str,
    *,
    options: Sequence[Option] = (),
    compression: grpc.Compression | None = None,
    istio_alpn: bool = False,
    patience: timedelta = timedelta(seconds=10),
    clock: Clock | None = None,
) -> Iterator[BlockingGrpcChannel]:
    """A `grpc.Channel` to a server, open inside the `with` block (see `grpc_channel`).

    Its connections go through a thread of the library, which does not survive a fork: open it in the process that
    uses it. Add interceptors with `grpc.intercept_channel`.

    Raises:
        ConfigurationError: see `grpc_channel`.
    """
    portal = portal_to(address, source, authorize, istio_alpn=istio_alpn, patience=patience, clock=clock)
    with (
        LoopThread("istio-auth-portal") as loop,
        loop.using(portal),
        grpc.insecure_channel(portal.target, channel_options(portal, options), compression) as channel,
    ):
        yield BlockingGrpcChannel(channel, portal)


class BlockingGrpcChannel(grpc.Channel):
    """A `grpc.Channel` whose calls tell why they were not answered.

    Args:
        channel: gRPC's own.
        portal: what it dials.
    """

    def __init__(self, channel: grpc.Channel, portal: Portal) -> None:
        self._channel = channel
        self._portal = portal

    @property
    def last_error(self) -> IstioAuthError | None:
        """Why the latest connection failed; None once a server has answered."""
        return self._portal.last_error

    def unary_unary(self, *args: object, **kwargs: object) -> _UnaryUnary:
        """A method with one request and one response, as of `grpc.Channel`."""
        return cast("_UnaryUnary", _UnaryMethod(self._method("unary_unary", args, kwargs), self._portal))

    def unary_stream(self, *args: object, **kwargs: object) -> _UnaryStream:
        """A method with one request and a stream of responses."""
        return cast("_UnaryStream", _StreamMethod(self._method("unary_stream", args, kwargs), self._portal))

    def stream_unary(self, *args: object, **kwargs: object) -> _StreamUnary:
        """A method with a stream of requests and one response."""
        return cast("_StreamUnary", _UnaryMethod(self._method("stream_unary", args, kwargs), self._portal))

    def stream_stream(self, *args: object, **kwargs: object) -> _StreamStream:
        """A method with a stream both ways."""
        return cast("_StreamStream", _StreamMethod(self._method("stream_stream", args, kwargs), self._portal))

    def subscribe(
        self, callback: Callable[[grpc.ChannelConnectivity], None], try_to_connect: bool | None = False
    ) -> None:
        """Call `callback` at each change of the channel's state."""
        self._channel.subscribe(callback, try_to_connect or False)

    def unsubscribe(self, callback: Callable[[grpc.ChannelConnectivity], None]) -> None:
        """Do not call `callback` any more."""
        self._channel.unsubscribe(callback)

    def close(self) -> None:
        """Take no more calls, and end those in flight."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def _method(self, kind: str, args: Sequence[object], kwargs: Mapping[str, object]) -> _Method:
        return cast("_Method", getattr(self._channel, kind)(*args, **kwargs))


class _Pending(Protocol):
    """What gRPC gives for a call that may not be over: a call, and a future of it or an iterator of its responses."""

    def code(self) -> grpc.StatusCode: ...
    def details(self) -> str | None: ...
    def result(self, timeout: float | None) -> object: ...
    def exception(self, timeout: float | None) -> Exception | None: ...
    def add_done_callback(self, fn: Callable[[object], None]) -> None: ...
    def __next__(self) -> object: ...


class _Method(Protocol):
    """What gRPC gives for a method; one with a stream of responses can only be called."""

    def __call__(self, *args: object, **kwargs: object) -> object: ...
    def with_call(self, *args: object, **kwargs: object) -> object: ...
    def future(self, *args: object, **kwargs: object) -> _Pending: ...


class _StreamMethod:
    """A method with a stream of responses: it returns a call at once."""

    def __init__(self, method: _Method, portal: Portal) -> None:
        self._method = method
        self._portal = portal

    def __call__(self, *args: object, **kwargs: object) -> object:
        return _Call(cast("_Pending", self._method(*args, **kwargs)), self._portal)


class _UnaryMethod:
    """A method with one response: it returns when the call is over, unless `future` is used."""

    def __init__(self, method: _Method, portal: Portal) -> None:
        self._method = method
        self._portal = portal

    def __call__(self, *args: object, **kwargs: object) -> object:
        with _explaining(self._portal):
            return self._method(*args, **kwargs)

    def with_call(self, *args: object, **kwargs: object) -> object:
        with _explaining(self._portal):
            return self._method.with_call(*args, **kwargs)

    def future(self, *args: object, **kwargs: object) -> object:
        return _Call(self._method.future(*args, **kwargs), self._portal)


class _Call:
    """A call of gRPC's, with our reason in its status details; everything else is gRPC's."""

    def __init__(self, call: _Pending, portal: Portal) -> None:
        self._call = call
        self._portal = portal

    def __getattr__(self, name: str) -> object:
        return getattr(self._call, name)

    def __repr__(self) -> str:
        return repr(self._call)

    def details(self) -> str | None:
        return explained(self._portal, self._call.code(), self._call.details())

    def result(self, timeout: float | None = None) -> object:
        with _explaining(self._portal):
            return self._call.result(timeout)

    def exception(self, timeout: float | None = None) -> Exception | None:
        error = self._call.exception(timeout)
        return _explained_error(error, self._portal) if isinstance(error, grpc.RpcError) else error

    def add_done_callback(self, function: Callable[[object], None]) -> None:
        self._call.add_done_callback(lambda _call: function(self))

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> object:
        with _explaining(self._portal):
            return next(self._call)


class _CallFailed(grpc.RpcError):
    """The error of a call that was not answered, with our reason in its details."""

    def __init__(self, error: grpc.RpcError, details: str) -> None:
        super().__init__(f"{error.code()}: {details}")
        self._error = error
        self._details = details

    def __getattr__(self, name: str) -> object:
        return getattr(self._error, name)

    def details(self) -> str:
        return self._details


for _kind in (_Call, _CallFailed):  # for `isinstance`; real base classes would hide what `__getattr__` finds
    for _base in (grpc.Call, grpc.Future):
        cast("ABCMeta", _base).register(_kind)


@contextmanager
def _explaining(portal: Portal) -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as error:
        if (found := _explained_error(error, portal)) is error:
            raise
        raise found from portal.last_error


def _explained_error(error: grpc.RpcError, portal: Portal) -> grpc.RpcError:
    details = explained(portal, error.code(), error.details())
    return error if details is None or details == error.details() else _CallFailed(error, details)
