"""A node agent reduced to its secrets: serves Envoy whatever a test puts into its source, and every change of it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
from envoy.service.discovery.v3.discovery_pb2 import DiscoveryRequest, DiscoveryResponse
from google.protobuf.any_pb2 import Any as AnyMessage

from istio_auth.errors import NotReady
from istio_auth.sources.memory import MemorySource
from istio_auth.x509_source import X509Context
from node_agent.sds.secrets import SECRET_TYPE, Renderer, resolve


class FakeAgent:
    """Secrets over a Unix socket, without asking who calls.

    Args:
        path: the socket.
        context: what the workload holds at first; with None every request waits.
    """

    def __init__(self, path: Path, context: X509Context | None) -> None:
        self.path = path
        self.source = MemorySource(context)
        self.refused: list[str] = []  # what Envoy said of secrets that it would not have
        self.asked = asyncio.Event()
        self._server = grpc.aio.server()
        self._changed: set[asyncio.Event] = set()

    async def __aenter__(self) -> Self:
        stream = grpc.stream_stream_rpc_method_handler(
            self._stream, DiscoveryRequest.FromString, DiscoveryResponse.SerializeToString
        )
        service = "envoy.service.secret.v3.SecretDiscoveryService"
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service, {"StreamSecrets": stream}),)
        )
        self._server.add_insecure_port(f"unix:{self.path}")
        await self._server.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._server.stop(0)

    def replace(self, context: X509Context) -> None:
        """Give the workload something new to hold."""
        self.source.replace(context)
        for changed in self._changed:
            changed.set()

    async def _stream(
        self,
        requests: AsyncIterator[DiscoveryRequest],
        _: grpc.aio.ServicerContext[DiscoveryRequest, DiscoveryResponse],
    ) -> AsyncIterator[DiscoveryResponse]:
        changed = asyncio.Event()
        self._changed.add(changed)
        names: list[str] = []

        async def listen() -> None:
            async for request in requests:
                self.asked.set()
                if request.HasField("error_detail"):
                    self.refused.append(request.error_detail.message)
                if list(request.resource_names) != names:
                    names[:] = request.resource_names
                    changed.set()

        listening = asyncio.create_task(listen())
        try:
            for version in itertools.count(1):
                await changed.wait()
                changed.clear()
                if found := self._resources(names):
                    yield DiscoveryResponse(
                        version_info=str(version), nonce=str(version), type_url=SECRET_TYPE, resources=found
                    )
        finally:
            self._changed.discard(changed)
            listening.cancel()

    def _resources(self, names: list[str]) -> list[AnyMessage]:
        try:
            context = self.source.x509_context()
        except NotReady:
            return []
        own = context.svid.id.trust_domain
        found = [resolve(name, context, Renderer(), own) for name in names]
        return [AnyMessage(type_url=SECRET_TYPE, value=resource.body) for resource in found if resource]
