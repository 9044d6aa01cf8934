"""The only place where gRPC servers are made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

import grpc

from istio_auth.door import Door
from istio_auth.errors import Code, IstioAuthError
from istio_auth.rpc.method import Call, Method, Service

__all__ = ["Call", "Limits", "Method", "RpcServer", "Service"]


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a server takes on.

    Args:
        in_flight: unary calls being answered at once; more are refused with a retry hint.
        streams: streams open at once, over all connections.
        streams_per_connection: calls of any kind at once on one connection.
        request_bytes: the largest request, unless a method says otherwise.
        deadline: the longest time for a unary call, whatever the caller allows.
        retry_after: the hint to callers that came at the wrong time.
        connection_age: after about this long a connection is asked to come again.
        connection_grace: how long calls on it may then still take.
        keepalive: after this long without a sign of life a caller is asked for one.
        keepalive_timeout: how long it may take to give it.
        min_ping_interval: callers that ask more often than this without need are sent away.
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


class RpcServer:
    """A gRPC server behind a door."""

    def __init__(
        self,
        door: Door,
        services: Sequence[Service],
        *,
        limits: Limits | None = None,
        status_of: Mapping[str, Callable[[IstioAuthError], grpc.StatusCode]] | None = None,
        on_call: Callable[[str, Code | None, float], None] | None = None,
    ) -> None:
        """Arguments as in the class."""

    async def start(self) -> None:
        """Begin to answer."""

    async def stop(self, grace: timedelta) -> None:
        """End."""
