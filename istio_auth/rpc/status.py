"""Errors as gRPC statuses, and statuses as errors: the table of the error tree, both ways."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import timedelta
from types import MappingProxyType
from typing import Protocol, cast

import grpc

from istio_auth.errors import (
    Code,
    ConflictError,
    Exhausted,
    IstioAuthError,
    MalformedError,
    MissingError,
    NotAuthenticated,
    NotAuthorized,
    NotReady,
    UnknownMethod,
)

CODES: Mapping[Code, grpc.StatusCode] = MappingProxyType(
    {
        Code.MALFORMED: grpc.StatusCode.INVALID_ARGUMENT,
        Code.NOT_AUTHENTICATED: grpc.StatusCode.UNAUTHENTICATED,
        Code.NOT_AUTHORIZED: grpc.StatusCode.PERMISSION_DENIED,
        Code.MISSING: grpc.StatusCode.NOT_FOUND,
        Code.UNKNOWN_METHOD: grpc.StatusCode.UNIMPLEMENTED,
        Code.CONFLICT: grpc.StatusCode.ABORTED,
        Code.NOT_READY: grpc.StatusCode.UNAVAILABLE,
        Code.EXHAUSTED: grpc.StatusCode.RESOURCE_EXHAUSTED,
        Code.INTERNAL: grpc.StatusCode.INTERNAL,
    }
)
_RETRY_AFTER = "grpc-retry-pushback-ms"  # gRFC A6; C-core and grpc-go honour it
_LONGEST_HINT_MS = 24 * 3600 * 1000


_ERRORS: Mapping[grpc.StatusCode, type[IstioAuthError]] = MappingProxyType(
    {
        grpc.StatusCode.INVALID_ARGUMENT: MalformedError,
        grpc.StatusCode.OUT_OF_RANGE: MalformedError,
        grpc.StatusCode.FAILED_PRECONDITION: MalformedError,
        grpc.StatusCode.UNAUTHENTICATED: NotAuthenticated,
        grpc.StatusCode.PERMISSION_DENIED: NotAuthorized,
        grpc.StatusCode.NOT_FOUND: MissingError,
        grpc.StatusCode.UNIMPLEMENTED: UnknownMethod,
        grpc.StatusCode.ABORTED: ConflictError,
        grpc.StatusCode.ALREADY_EXISTS: ConflictError,
        grpc.StatusCode.UNAVAILABLE: NotReady,
        grpc.StatusCode.DEADLINE_EXCEEDED: NotReady,
        grpc.StatusCode.CANCELLED: NotReady,
        grpc.StatusCode.RESOURCE_EXHAUSTED: Exhausted,
    }
)


def retry_metadata(error: IstioAuthError) -> tuple[tuple[str, str], ...]:
    """The trailing metadata that tells a caller when to try again; empty if the error does not say."""
    if error.retry_after is None:
        return ()
    return ((_RETRY_AFTER, str(int(error.retry_after.total_seconds() * 1000))),)


class Failure(Protocol):
    """What gRPC raises when a call has failed, in either of its interfaces."""

    def code(self) -> grpc.StatusCode:
        """The status."""
        ...

    def details(self) -> str | None:
        """What the server said."""
        ...

    def trailing_metadata(self) -> object:
        """The trailing metadata: pairs of a name and a value, or None."""
        ...


def error_of(method: str, error: Failure) -> IstioAuthError:
    """The error of ours for a failed call.

    Args:
        method: the path of the method, for the message.
        error: what gRPC raised.
    """
    code = error.code()
    kind = _ERRORS.get(code, IstioAuthError)
    message = f"{method} was answered with {code.name}: {error.details() or 'no details'}"
    return kind(message, retry_after=_retry_after(error))


def _retry_after(error: Failure) -> timedelta | None:
    trailing = cast("Iterable[tuple[str, str | bytes]]", error.trailing_metadata() or ())
    for name, value in trailing:
        if name == _RETRY_AFTER and isinstance(value, str) and value.isascii() and value.isdigit():
            return timedelta(milliseconds=min(int(value), _LONGEST_HINT_MS))
    return None
