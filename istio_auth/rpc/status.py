"""Errors as gRPC statuses, and statuses as errors: the table of the error tree, both ways."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import grpc

from istio_auth.errors import Code

CODES: Mapping[Code, grpc.StatusCode] = MappingProxyType(
    {
        Code.MALFORMED: grpc.StatusCode.INVALID_ARGUMENT,
        Code.NOT_AUTHENTICATED: grpc.StatusCode.UNAUTHENTICATED,
        Code.NOT_AUTHORIZED: grpc.StatusCode.PERMISSION_DENIED,
        Code.MISSING: grpc.StatusCode.NOT_FOUND,
        Code.CONFLICT: grpc.StatusCode.ABORTED,
        Code.NOT_READY: grpc.StatusCode.UNAVAILABLE,
        Code.EXHAUSTED: grpc.StatusCode.RESOURCE_EXHAUSTED,
        Code.INTERNAL: grpc.StatusCode.INTERNAL,
    }
)
