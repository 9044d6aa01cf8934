"""The only place where gRPC servers are made: one behind a door, with bounds, deadlines and one table of errors.

Requests are parsed here and not by gRPC, so that malformed and oversized ones are refused like everything else. An
`IstioAuthError` becomes its status with its public text. Any other exception becomes INTERNAL: its text stays in the
log, and the caller gets the id of the request, to ask about it. Every refusal is logged. But when we are too busy, a
caller has one warning a minute, so that overload does not fill the log; its other refusals, and those of a server that
is stopping, are logged at level DEBUG.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn, Self, TypeAlias

import grpc
from google.protobuf.message import DecodeError, Message

from istio_auth.door import Door
from istio_auth.errors import Code, Exhausted, IstioAuthError, MalformedError, NotReady
from istio_auth.log_limit import LogLimit, without_port
from istio_auth.rpc import request_id
from istio_auth.rpc.answers import strayed
from istio_auth.rpc.method import Call, Method, Service
from istio_auth.rpc.status import CODES, retry_metadata

__all__ = ["Call", "Limits", "Method", "RpcServer", "Service"]

_log = logging.getLogger(__name__)

_MOMENT = 0.1  # seconds; on a busy machine the next waiting call may take nearly so long to begin

_Context: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"
Guard: TypeAlias = Callable[[Call], contextlib.AbstractAsyncContextManager[Callable[[], None]]]


@dataclass(frozen=True, slots=True)
class Limits:
    """How much work a server takes.

    Args:
        in_flight: unary calls being answered at once; more are refused with a retry hint.
        streams: streams open at once, over all connections.
        streams_per_connection: calls of any kind at once on one connection.
        request_bytes: the largest request, unless a method says otherwise.
        deadline: the longest time for a unary call, even if the caller allows more.
        retry_after: when callers that are refused for now shall try again.
        connection_age: the age, roughly, at which a caller is told to open a new connection.
        connection_grace: how long calls on the old connection may then still take.
        keepalive: after this long without a byte from the caller it is sent a ping.
        keepalive_timeout: how long it may take to answer the ping.
        min_ping_interval: connections of callers that send pings more often than this, without need, are closed.
        first_word: a connection that has not begun to speak HTTP/2 after this long is closed.
    """

    in_flight: int = 256
    streams: int = 10_000
    streams_per_connection: int = 100
    request_bytes: int = 64 << 10
    deadline: timedelta = timedelta(seconds=30)
    retry_after: timedelta = timedelta(seconds=1)
    connection_age: timedelta = timedelta(minutes=30)
    connection_grace: timedelta = timedelta(seconds=30)
    keepalive: timedelta = timedelta(seconds=30)
    keepalive_timeout: timedelta = timedelta(seconds=10)
    min_ping_interval: timedelta = timedelta(seconds=5)
    first_word: timedelta = timedelta(seconds=20)


class _Stopping(NotReady):
    """The server is stopping. The log has a line about that already, so refused callers get none."""


class _Busy(Exhausted):
    """This caller and others ask for more than the server takes at once."""


class RpcServer:
    """A gRPC server behind a door.

    Args:
        door: knows who calls, and names the private socket to listen on.
        services: what it answers.
        limits: how much work it takes.
        on_call: called for each call that was answered, with its path, the code of its error or None, and the seconds
            it took.
        guard: makes a context manager that is entered while a call is open. The function that it yields is called
            before each request on a stream is read. Both raise to refuse; if the reason is `Exhausted`, they must log
            it themselves.
    """

    def __init__(
        self,
        door: Door,
        services: Sequence[Service],
        *,
        limits: Limits | None = None,
        on_call: Callable[[str, Code | None, float], None] | None = None,
        guard: Guard | None = None,
    ) -> None:
        self.guard = guard
        self._door = door
        self._services = tuple(services)
        self._limits = limits or Limits()
        self._on_call = on_call
        self._server: grpc.aio.Server | None = None
        self._stopping = False
        self._in_flight = 0
        self._begun = 0
        self._busy_lines = LogLimit()
        self._streams: set[asyncio.Task[object]] = set()

    async def start(self) -> None:
        """Begin to answer on the door's private socket."""
        server = grpc.aio.server(options=_options(self._limits, self._largest_request()))
        for service in self._services:
            handlers = {
                name: self._handler(f"/{service.name}/{name}", method) for name, method in service.methods.items()
            }
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.name, handlers),))
        server.add_insecure_port(self._door.target)
        await server.start()
        self._server = server

    async def stop(self, grace: timedelta) -> None:
        """Refuse new calls, end streams with UNAVAILABLE, and give the calls in flight this long to finish."""
        self._stopping = True
        for task in list(self._streams):
            task.cancel()
        if self._server is not None:
            over = time.monotonic() + grace.total_seconds()
            await self._quiet(until=over)
            await self._server.stop(max(0.0, over - time.monotonic()))
            self._server = None

    async def _quiet(self, *, until: float) -> None:
        """Wait until no call is open and none has begun for a moment: gRPC would cancel calls that wait to begin."""
        seen = -1
        while (self._in_flight or self._streams or seen != self._begun) and time.monotonic() < until:
            seen = self._begun
            await asyncio.sleep(_MOMENT)

    def _largest_request(self) -> int:
        methods = (method for service in self._services for method in service.methods.values())
        return max((self._limits.request_bytes, *(method.max_request_bytes or 0 for method in methods)))

    def _handler(self, path: str, method: Method) -> grpc.RpcMethodHandler[bytes, bytes]:
        limit = method.max_request_bytes or self._limits.request_bytes
        guard = self.guard or _unguarded

        def parsed(data: bytes) -> Message:
            if len(data) > limit:
                message = f"a request of {len(data)} bytes is larger than the {limit} allowed"
                raise MalformedError(message, public=message)
            try:
                return method.request.FromString(data)
            except DecodeError as error:
                raise MalformedError("the request does not parse", public="the request does not parse") from error

        async def each_parsed(requests: AsyncIterator[bytes], spend: Callable[[], None]) -> AsyncIterator[Message]:
            async for data in requests:  # started only if the method reads: gRPC complains of an unused iterator
                spend()
                yield parsed(data)

        async def unary(data: bytes, context: _Context) -> bytes:
            async with _Answer(self, path, context) as answer, guard(answer.call):
                return await self._unary(method, parsed(data), answer.call)

        async def stream(requests: AsyncIterator[bytes], context: _Context) -> None:
            async with _Answer(self, path, context) as answer, guard(answer.call) as spend:
                await self._stream(method, each_parsed(requests, spend), answer.call, context)

        if method.unary_function is not None:
            return grpc.unary_unary_rpc_method_handler(unary)
        return grpc.stream_stream_rpc_method_handler(stream)

    async def _unary(self, method: Method, request: Message, call: Call) -> bytes:
        assert method.unary_function is not None
        if self._in_flight >= self._limits.in_flight:
            raise self._too_much(f"{self._in_flight} calls are in flight")
        allowed = self._limits.deadline.total_seconds()
        if call.time_remaining is not None:
            allowed = min(allowed, call.time_remaining)
        self._in_flight += 1
        try:
            async with asyncio.timeout(allowed):
                response = await method.unary_function(request, call)
        except TimeoutError as error:
            raise NotReady(f"no answer within {allowed:.1f} s", retry_after=self._limits.retry_after) from error
        finally:
            self._in_flight -= 1
        return response.SerializeToString()

    async def _stream(self, method: Method, requests: AsyncIterator[Message], call: Call, context: _Context) -> None:
        assert method.stream_function is not None
        if len(self._streams) >= self._limits.streams:
            raise self._too_much(f"{len(self._streams)} streams are open")
        task = asyncio.current_task()
        assert task is not None
        self._streams.add(task)
        try:
            async with contextlib.aclosing(method.stream_function(requests, call)) as responses:
                async for response in responses:
                    await context.write(response.SerializeToString())
        except asyncio.CancelledError:
            if not self._stopping:
                raise
            task.uncancel()
            raise self._leaving() from None
        finally:
            self._streams.discard(task)

    def _too_much(self, words: str) -> _Busy:
        return _Busy(words, public="too many requests, try again later", retry_after=self._limits.retry_after)

    def _leaving(self) -> _Stopping:
        words = "the server is stopping"
        return _Stopping(words, public=words, retry_after=self._limits.retry_after)

    def begin(self, context: _Context) -> Call:
        """What is known of a call when it begins.

        Raises:
            NotReady: the server is stopping.
            NotAuthenticated: the call did not come through the door.
        """
        self._begun += 1
        if self._stopping:
            raise self._leaving()
        return Call(
            self._door.caller(context.peer()),
            _metadata(context),
            request_id.get(),
            context.time_remaining(),
        )

    def log_level(self, error: IstioAuthError, caller: str) -> int:
        """The log level of a refusal."""
        if isinstance(error, _Busy):
            return logging.WARNING if self._busy_lines.allows(without_port(caller)) else logging.DEBUG
        told_already = isinstance(error, _Stopping) or (error.code is Code.EXHAUSTED and self.guard is not None)
        return logging.DEBUG if told_already else logging.INFO

    def done(self, path: str, code: Code | None, seconds: float) -> None:
        """Report an answered call to `on_call`."""
        if self._on_call is not None:
            self._on_call(path, code, seconds)


class _Answer:
    """One call from its beginning to its end: gives it an id, turns its error into a status, and counts it."""

    def __init__(self, server: RpcServer, path: str, context: _Context) -> None:
        self._server = server
        self._path = path
        self._context = context
        self._began = time.monotonic()
        self.call: Call

    async def __aenter__(self) -> Self:
        request_id.set(secrets.token_hex(8))
        try:
            self.call = self._server.begin(self._context)
        except IstioAuthError as error:
            await self._refuse(error)
        return self

    async def __aexit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if error is None:
            self._done(None)
        elif isinstance(error, IstioAuthError):
            await self._refuse(error)
        elif not isinstance(error, grpc.aio.AbortError) and (isinstance(error, Exception) or strayed(error)):
            await self._fail(error)

    async def _refuse(self, error: IstioAuthError) -> NoReturn:
        self._done(error.code)
        status, caller = CODES[error.code], self._caller()
        _log.log(
            self._server.log_level(error, caller),
            "call refused: method=%s caller=%s status=%s reason=%s",
            self._path,
            caller,
            status.name,
            error,
        )
        await self._context.abort(status, error.public, retry_metadata(error))
        raise AssertionError("abort always raises")

    async def _fail(self, error: BaseException) -> NoReturn:
        self._done(Code.INTERNAL)
        _log.error("call failed: method=%s caller=%s", self._path, self._caller(), exc_info=error)
        await self._context.abort(grpc.StatusCode.INTERNAL, f"{Code.INTERNAL.value} (request {request_id.get()})")
        raise AssertionError("abort always raises")

    def _caller(self) -> str:
        call: Call | None = getattr(self, "call", None)
        return str(call.caller) if call is not None else self._context.peer()

    def _done(self, code: Code | None) -> None:
        self._server.done(self._path, code, time.monotonic() - self._began)


@contextlib.asynccontextmanager
async def _unguarded(_call: Call) -> AsyncIterator[Callable[[], None]]:
    yield lambda: None


def _metadata(context: _Context) -> Mapping[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for name, value in context.invocation_metadata() or ():
        if isinstance(value, str):
            found[name] = (*found.get(name, ()), value)
    return found


def _options(limits: Limits, largest_request: int) -> list[tuple[str, int]]:
    def milliseconds(duration: timedelta) -> int:
        return int(duration.total_seconds() * 1000)

    return [
        ("grpc.max_receive_message_length", largest_request + 1024),  # gRPC refuses more, without our words
        ("grpc.max_concurrent_streams", limits.streams_per_connection),
        ("grpc.max_connection_age_ms", milliseconds(limits.connection_age)),
        ("grpc.max_connection_age_grace_ms", milliseconds(limits.connection_grace)),
        ("grpc.keepalive_time_ms", milliseconds(limits.keepalive)),
        ("grpc.keepalive_timeout_ms", milliseconds(limits.keepalive_timeout)),
        ("grpc.http2.min_ping_interval_without_data_ms", milliseconds(limits.min_ping_interval)),
        ("grpc.server_handshake_timeout_ms", milliseconds(limits.first_word)),
        ("grpc.so_reuseport", 0),
    ]
