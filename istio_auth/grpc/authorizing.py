"""Who may call which method: server interceptors that ask an authorizer for each call, and refuse if there is none.

The door decides who may connect at all; these decide on each call. A refused caller learns only that it is refused;
method, caller and reason are in our log.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from typing import Any, TypeAlias, TypeVar, cast

import grpc

from istio_auth.authorize import Authorizer, admit
from istio_auth.errors import Code, ConfigurationError, IstioAuthError, NotAuthenticated, NotAuthorized
from istio_auth.grpc.peers import PeerContext, peer_id
from istio_auth.spiffe_id import SpiffeID

_LOG = logging.getLogger("istio_auth.grpc")

_Handler: TypeAlias = "grpc.RpcMethodHandler[object, object]"
_AioContext: TypeAlias = "grpc.aio.ServicerContext[object, object]"
_FoundHandler = TypeVar("_FoundHandler", "_Handler", "_Handler | None")
_Answer: TypeAlias = tuple[grpc.StatusCode, str]

_UNKNOWN_CALLER: _Answer = (grpc.StatusCode.UNAUTHENTICATED, Code.NOT_AUTHENTICATED.value)
_NOT_WELCOME: _Answer = (grpc.StatusCode.PERMISSION_DENIED, Code.NOT_AUTHORIZED.value)


class MethodRules:
    """Which authorizer decides on which method; a method without one is closed to everybody.

    Args:
        rules: authorizers by name: `/package.Service/Method` is for one method, `/package.Service/` for all other
            methods of a service, and `/` for all other methods of the server. Only the longest name that fits counts.

    Raises:
        ConfigurationError: a name has none of these forms.
    """

    def __init__(self, rules: Mapping[str, Authorizer]) -> None:
        for name in rules:
            if not _is_rule(name):
                raise ConfigurationError(
                    f"{name!r} names no methods: write /package.Service/Method, /package.Service/ for all of a service,"
                    " or / for all that have no rule of their own"
                )
        self._rules = dict(rules)

    def check(self, method: str, peer: SpiffeID) -> None:
        """Check that a caller may call a method.

        Args:
            method: its path, `/package.Service/Method`.
            peer: the caller.

        Raises:
            NotAuthorized: it may not, or there is no rule for the method.
        """
        service = method.rpartition("/")[0] + "/"
        for name in (method, service, "/"):
            if (authorize := self._rules.get(name)) is not None:
                admit(peer, authorize)
                return
        raise NotAuthorized(f"there is no rule for {method}, so nobody may call it")


class AuthorizingInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in its stubs alone
    """Checks each call to a `grpc.aio.server` behind `serve_grpc`; put it before all other interceptors.

    Args:
        rules: see `MethodRules`.

    Raises:
        ConfigurationError: a rule names no methods.
    """

    def __init__(self, rules: Mapping[str, Authorizer]) -> None:
        self._rules = MethodRules(rules)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler:
        """Make the method's handler check the caller first: here gRPC does not tell yet who calls."""
        return _guarded(await continuation(handler_call_details), self._rules, handler_call_details.method)


class BlockingAuthorizingInterceptor(grpc.ServerInterceptor):  # type: ignore[type-arg]  # generic in its stubs alone
    """The same for a `grpc.server` with threads (see `AuthorizingInterceptor`)."""

    def __init__(self, rules: Mapping[str, Authorizer]) -> None:
        self._rules = MethodRules(rules)

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], _Handler | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler | None:
        """Make the method's handler check the caller first."""
        return _guarded(continuation(handler_call_details), self._rules, handler_call_details.method)


_Behavior: TypeAlias = Callable[[object, object], Any]  # as many kinds as gRPC knows
_Refusal: TypeAlias = Callable[[PeerContext], "_Answer | None"]
_KINDS: Mapping[tuple[bool, bool], tuple[str, Callable[..., _Handler]]] = {  # by whether requests, responses stream
    (False, False): ("unary_unary", grpc.unary_unary_rpc_method_handler),
    (False, True): ("unary_stream", grpc.unary_stream_rpc_method_handler),
    (True, False): ("stream_unary", grpc.stream_unary_rpc_method_handler),
    (True, True): ("stream_stream", grpc.stream_stream_rpc_method_handler),
}


def _guarded(handler: _FoundHandler, rules: MethodRules, method: str) -> _FoundHandler:
    if handler is None:
        return handler  # there is no such method, as gRPC will answer
    kind, make = _KINDS[handler.request_streaming, handler.response_streaming]
    ask = functools.partial(_refusal, rules, method)
    behavior = _asking_first(getattr(handler, kind), ask, streams=handler.response_streaming)
    return make(behavior, handler.request_deserializer, handler.response_serializer)


def _asking_first(behavior: _Behavior, refusal: _Refusal, *, streams: bool) -> _Behavior:
    """A function that checks the caller and then calls this one; of the same kind, since gRPC treats kinds differently.

    An asyncio server calls plain functions in a thread; one that streams runs only when the first response is wanted.
    """
    guard: Callable[[_Behavior, _Refusal], Callable[..., object]]
    if inspect.isasyncgenfunction(behavior):
        guard = _async_generator
    elif inspect.iscoroutinefunction(behavior):
        guard = _coroutine
    else:
        guard = _generator if streams else _function
    return functools.wraps(behavior)(cast("_Behavior", guard(behavior, refusal)))


def _async_generator(
    behavior: Callable[[object, object], AsyncGenerator[object, None]], refusal: _Refusal
) -> Callable[[object, _AioContext], AsyncGenerator[object, None]]:
    async def asking(request: object, context: _AioContext) -> AsyncGenerator[object, None]:
        if (answer := refusal(context)) is not None:
            await context.abort(*answer)
        async with contextlib.aclosing(behavior(request, context)) as responses:
            async for response in responses:
                yield response

    return asking


def _coroutine(
    behavior: Callable[[object, object], Awaitable[object]], refusal: _Refusal
) -> Callable[[object, _AioContext], Awaitable[object]]:
    async def asking(request: object, context: _AioContext) -> object:
        if (answer := refusal(context)) is not None:
            await context.abort(*answer)
        return await behavior(request, context)

    return asking


def _generator(
    behavior: Callable[[object, object], Iterator[object]], refusal: _Refusal
) -> Callable[[object, grpc.ServicerContext], Iterator[object]]:
    def asking(request: object, context: grpc.ServicerContext) -> Iterator[object]:
        if (answer := refusal(context)) is not None:
            context.abort(*answer)
        yield from behavior(request, context)

    return asking


def _function(behavior: _Behavior, refusal: _Refusal) -> Callable[[object, grpc.ServicerContext], object]:
    def asking(request: object, context: grpc.ServicerContext) -> object:
        if (answer := refusal(context)) is not None:
            context.abort(*answer)
        return behavior(request, context)

    return asking


def _refusal(rules: MethodRules, method: str, context: PeerContext) -> _Answer | None:
    """What a refused caller is told; None if it is welcome."""
    caller: object = context.peer()
    try:
        caller = peer = peer_id(context)
        rules.check(method, peer)
    except IstioAuthError as error:
        reason = error
    except Exception as error:  # noqa: BLE001  # whatever an authorizer raises, it has not said yes
        reason = NotAuthorized(f"deciding on it failed: {error!r}")
    else:
        return None
    _LOG.warning("call refused: method=%s peer=%s reason=%s", method, caller, reason)
    return _UNKNOWN_CALLER if isinstance(reason, NotAuthenticated) else _NOT_WELCOME


def _is_rule(name: str) -> bool:
    """Whether it is `/`, `/package.Service/` or `/package.Service/Method`."""
    if name == "/":
        return True
    empty, service, _method = name.split("/") if name.count("/") == 2 else ("", "", "")
    return not empty and bool(service) and not set(name) & set("* ")
