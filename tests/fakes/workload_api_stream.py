"""A client of the Workload API on a Unix socket, over real gRPC and message by message, under the hand of a test."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc

from istio_auth.proto import workload_api_pb2 as messages


class WorkloadAPIStream:
    """One stream of `FetchX509SVID`, from entering to leaving; it reads only when it is told to."""

    def __init__(self, path: Path) -> None:
        self._channel = grpc.aio.insecure_channel(f"unix:{path}", options=[("grpc.use_local_subchannel_pool", 1)])

    async def __aenter__(self) -> Self:
        fetch = self._channel.unary_stream(
            "/SpiffeWorkloadAPI/FetchX509SVID",
            request_serializer=messages.X509SVIDRequest.SerializeToString,
            response_deserializer=messages.X509SVIDResponse.FromString,
        )
        self._call = fetch(messages.X509SVIDRequest(), metadata=(("workload.spiffe.io", "true"),))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._call.cancel()
        await self._channel.close(None)

    async def receive(self, *, within: float = 60) -> messages.X509SVIDResponse:
        """The next message."""
        async with asyncio.timeout(within):
            found = await self._call.read()
        assert isinstance(found, messages.X509SVIDResponse), "the stream goes on"
        return found
