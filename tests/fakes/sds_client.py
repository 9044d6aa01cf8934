"""A client of secret discovery on a Unix socket, over real gRPC: what Envoy does, under the hand of a test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
from cryptography import x509
from envoy.extensions.transport_sockets.tls.v3.secret_pb2 import Secret
from envoy.service.discovery.v3.discovery_pb2 import DiscoveryRequest, DiscoveryResponse

from istio_auth.pem import read_certificates
from istio_auth.svid import X509SVID
from node_agent.sds.secrets import SECRET_TYPE

SERVICE = "/envoy.service.secret.v3.SecretDiscoveryService"


class SDSStream:
    """One stream, from entering to leaving. It accepts what it receives, unless told otherwise."""

    def __init__(self, path: Path, *names: str, node: str = "test-sidecar") -> None:
        self._node = node
        self._requests: asyncio.Queue[DiscoveryRequest] = asyncio.Queue()
        self._channel = grpc.aio.insecure_channel(f"unix:{path}", options=[("grpc.use_local_subchannel_pool", 1)])
        self.names = names
        self.version = ""
        self.secrets: dict[str, Secret] = {}
        self.answers = 0

    async def __aenter__(self) -> Self:
        open_stream = self._channel.stream_stream(
            f"{SERVICE}/StreamSecrets",
            request_serializer=DiscoveryRequest.SerializeToString,
            response_deserializer=DiscoveryResponse.FromString,
        )
        self._call = open_stream(self._sent())
        self._answers: AsyncIterator[DiscoveryResponse] = aiter(self._call)
        self.send()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._call.cancel()
        await self._channel.close(None)

    async def _sent(self) -> AsyncIterator[DiscoveryRequest]:
        while True:
            yield await self._requests.get()

    def send(self, *, nonce: str = "", refusal: str = "", type_url: str = SECRET_TYPE) -> None:
        """Ask for the names."""
        request = DiscoveryRequest(
            resource_names=self.names, type_url=type_url, version_info=self.version, response_nonce=nonce
        )
        request.node.id = self._node
        if refusal:
            request.error_detail.message = refusal
        self._requests.put_nowait(request)

    async def receive(self, *, within: float = 60, refusal: str = "") -> DiscoveryResponse:
        """The next answer, accepted, or refused with these words."""
        async with asyncio.timeout(within):
            response = await anext(self._answers)
        self.answers += 1
        if refusal:
            self.send(nonce=response.nonce, refusal=refusal)
            return response
        self.version = response.version_info
        for each in response.resources:
            secret = Secret.FromString(each.value)
            self.secrets[secret.name] = secret
        self.send(nonce=response.nonce)
        return response

    def svid(self, name: str = "default") -> X509SVID:
        """The certificate received under a name."""
        found = self.secrets[name].tls_certificate
        return X509SVID.parse(found.certificate_chain.inline_bytes, found.private_key.inline_bytes)

    def roots(self, name: str = "ROOTCA") -> tuple[x509.Certificate, ...]:
        """The roots received under a name."""
        return read_certificates(self.secrets[name].validation_context.trusted_ca.inline_bytes)


async def received(socket: Path, *, within: float = 60) -> X509SVID:
    """What a workload that connects now gets, as soon as the agent's socket is there."""
    async with asyncio.timeout(within):
        while True:
            async with SDSStream(socket, "default", "ROOTCA") as stream:
                try:
                    await stream.receive()
                except grpc.aio.AioRpcError:
                    await asyncio.sleep(0.01)
                    continue
                return stream.svid()
