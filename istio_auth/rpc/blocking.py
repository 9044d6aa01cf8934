"""The blocking twin of `Channel`, for threads: calls to one server, with every failure as an `IstioAuthError`.

It survives a fork of the process, in parent and child (see `istio_auth.rpc.forking`): calls that are open at a fork end
with `Interrupted`, and the next call opens a new connection. No error refers to a call, because gRPC would keep its
threads then.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Sequence
from datetime import timedelta
from typing import Self, TypeAlias, TypeVar

import grpc
from google.protobuf.message import Message

from istio_auth.errors import IstioAuthError, NotReady
from istio_auth.rpc.answers import channel_options, parsed
from istio_auth.rpc.forking import dropping, starting, tell_of_forks
from istio_auth.rpc.status import error_of

Response = TypeVar("Response", bound=Message)

_Metadata: TypeAlias = Sequence[tuple[str, str]]


class Interrupted(NotReady):
    """A call was cut off because this process forked, or because its channel was closed."""


class BlockingChannel:
    """A client's channel to one server, usable from any thread. A context manager.

    Args:
        target: a gRPC target such as `unix:/run/agent.sock`.
        max_response_bytes: the largest response that is read.
    """

    def __init__(self, target: str, *, max_response_bytes: int = 4 << 20) -> None:
        self._target = target
        self._max_response_bytes = max_response_bytes
        self._channel: grpc.Channel | None = None
        self._released = 0
        self._closed = threading.Event()
        tell_of_forks(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection and the calls on it, for good."""
        self._closed.set()
        self.release()

    def closed_within(self, wait: timedelta) -> bool:
        """Wait this long, or until the channel is closed; return whether it is closed."""
        return self._closed.wait(wait.total_seconds())

    def release(self) -> None:
        """End the connection and the calls on it; the next call opens a new one."""
        with dropping():
            channel, self._channel = self._channel, None
            self._released += 1
        if channel is not None:
            channel.close()

    def after_fork(self) -> None:
        """Called in a forked child, where the thread that held our locks does not exist."""
        was_closed, self._closed = self._closed.is_set(), threading.Event()
        if was_closed:
            self._closed.set()

    def unary(
        self,
        path: str,
        request: Message,
        response_type: type[Response],
        *,
        timeout: timedelta,
        metadata: _Metadata = (),
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
        with starting():
            future = (
                self._open()
                .unary_unary(path, None, None)
                .future(request.SerializeToString(), timeout=timeout.total_seconds(), metadata=tuple(metadata))
            )
            before = self._released
        try:
            return parsed(path, response_type, future.result())
        except grpc.RpcError as error:
            failure = self._failure(path, error, before)
        finally:
            del future
        raise failure  # not in the `except`, or it would refer to gRPC's error

    def stream(
        self,
        path: str,
        request: Message,
        response_type: type[Response],
        *,
        first_within: timedelta,
        metadata: _Metadata = (),
    ) -> Generator[Response]:
        """Call a method with one request and a stream of responses; stops when the server ends it without error.

        Args:
            path: `/package.Service/Method`.
            request: the request.
            response_type: the messages that come back.
            first_within: how long the first of them may take.
            metadata: the metadata of the request.

        Raises:
            IstioAuthError: it failed (see `unary`).
        """
        with starting():
            call = self._open().unary_stream(path, None, None)(request.SerializeToString(), metadata=tuple(metadata))
            before = self._released
        patience = _Patience(call, first_within)
        try:
            for data in call:
                patience.over()
                yield parsed(path, response_type, data)
        except grpc.RpcError as error:
            failure: IstioAuthError | None = self._failure(path, error, before)
        else:
            failure = None
        finally:
            patience.over()
            call.cancel()  # type: ignore[no-untyped-call]  # the stubs leave it so
            del call
        if patience.lost:
            raise NotReady(f"{path} was not answered within {first_within.total_seconds():g} seconds")
        if failure is not None:
            raise failure  # not in the `except`, or it would refer to gRPC's error

    def _open(self) -> grpc.Channel:
        if self._closed.is_set():
            raise Interrupted("the client is closed")
        if self._channel is None:
            self._channel = grpc.insecure_channel(self._target, options=channel_options(self._max_response_bytes))
        return self._channel

    def _failure(self, path: str, error: grpc.RpcError, before: int) -> IstioAuthError:
        if self._released != before:
            return Interrupted(f"{path}: {'the client was closed' if self._closed.is_set() else 'this process forked'}")
        return error_of(path, error)


class _Patience:
    """Cancels a call after this time, unless `over` is called before."""

    def __init__(self, call: grpc.Call, patience: timedelta) -> None:
        self.lost = False
        self._call: grpc.Call | None = call
        self._timer = threading.Timer(patience.total_seconds(), self._lose)
        self._timer.name, self._timer.daemon = "istio-auth patience", True
        self._timer.start()

    def over(self) -> None:
        self._timer.cancel()
        self._call = None

    def _lose(self) -> None:
        if (call := self._call) is not None:
            self.lost = True
            call.cancel()  # type: ignore[no-untyped-call]  # the stubs leave it so
