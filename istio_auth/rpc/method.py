"""What a service is made of: its methods, each with its messages and its bound, and the caller of each call."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias, TypeVar, cast

from google.protobuf.message import Message

from istio_auth.door import Caller

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)

UnaryFunction: TypeAlias = Callable[[Message, "Call"], Awaitable[Message]]
StreamFunction: TypeAlias = Callable[[AsyncIterator[Message], "Call"], AsyncGenerator[Message]]


@dataclass(frozen=True, slots=True)
class Call:
    """What is known of one call beside its request.

    Args:
        caller: who calls, as the door learned it.
        metadata: the metadata of the call, by name in lower case; a name may have several values. Binary values, whose
            names end in `-bin`, are left out.
        request_id: names this call in logs and in errors.
        time_remaining: the seconds that were left until the caller's deadline when the call began; None if it has none.
    """

    caller: Caller
    metadata: Mapping[str, tuple[str, ...]]
    request_id: str
    time_remaining: float | None


@dataclass(frozen=True, slots=True)
class Method:
    """One method of a service; made by `unary` or `stream`."""

    request: type[Message]
    unary_function: UnaryFunction | None
    stream_function: StreamFunction | None
    max_request_bytes: int | None

    @classmethod
    def unary(
        cls,
        function: Callable[[Request, Call], Awaitable[Response]],
        request: type[Request],
        response: type[Response],
        *,
        max_request_bytes: int | None = None,
    ) -> Method:
        """A method with one request and one response.

        Args:
            function: answers the request; raises `IstioAuthError` to refuse it.
            request: the message it takes.
            response: the message it gives.
            max_request_bytes: the largest request; None for the server's limit.
        """
        del response  # for the type checker: it ties the function to the method's declared answer
        return cls(request, cast("UnaryFunction", function), None, max_request_bytes)

    @classmethod
    def stream(
        cls,
        function: Callable[[AsyncIterator[Request], Call], AsyncGenerator[Response]],
        request: type[Request],
        response: type[Response],
        *,
        max_request_bytes: int | None = None,
    ) -> Method:
        """A method with a stream of requests and a stream of responses (see `unary`)."""
        del response
        return cls(request, None, cast("StreamFunction", function), max_request_bytes)


@dataclass(frozen=True, slots=True)
class Service:
    """A service: its full name with package, and its methods by name."""

    name: str
    methods: Mapping[str, Method]
