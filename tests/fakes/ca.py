"""A `FakeCA` on the network: real gRPC over real TLS, with both contracts, or with Istio's alone like a foreign CA."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import Self

from cryptography import x509

from istio_auth.authorize import any_id
from istio_auth.bundle import BundleSet
from istio_auth.door import Door, TLSCaller
from istio_auth.errors import IstioAuthError, NotAuthenticated, NotAuthorized
from istio_auth.host_port import HostPort
from istio_auth.pem import read_csr, write_certificates, write_der
from istio_auth.proto import istio_ca_pb2, node_pb2
from istio_auth.registration import Registration
from istio_auth.rpc.method import Call, Method, Service
from istio_auth.rpc.server import RpcServer
from istio_auth.sources.memory import MemorySource
from istio_auth.spiffe_id import SpiffeID
from istio_auth.tls import server_context
from istio_auth.x509_source import X509Context
from node_agent.ca_client.port import Chain, SigningRequest
from tests.fakes.authority import FakeAuthority
from tests.fakes.certificate_client import FakeCA, FakeClient
from tests.fakes.tcp import closed_port


class CAServer:
    """Serves a `FakeCA` on loopback, from entering to leaving; `away` and `back` in between.

    Args:
        ca: what it serves.
        node_service: whether it has our own service beside Istio's.
    """

    def __init__(self, ca: FakeCA, *, node_service: bool = True) -> None:
        self.ca = ca
        self.address = HostPort("127.0.0.1", closed_port())  # nobody else has it while we are away
        self.handshakes: list[str] = []
        self.hang = asyncio.Event()  # cleared: no call is answered
        self.hang.set()
        self.sequence = 1
        self.extra: FakeAuthority | None = None
        self.reports: list[node_pb2.SyncRequest] = []
        self._node_service = node_service
        self._streams: set[asyncio.Event] = set()
        self.identity = SpiffeID.for_ca(ca.root.trust_domain)
        self._door: Door | None = None
        self._server: RpcServer | None = None
        self.source = MemorySource()
        self.present(self.ca.authority)

    def present(self, authority: FakeAuthority, spiffe_id: SpiffeID | None = None) -> None:
        """Serve with a certificate of this authority, for the CA's own name or for another."""
        now = self.ca.clock.now()
        svid = authority.svid(
            (spiffe_id or self.identity).path, not_before=now - timedelta(hours=1), not_after=now + timedelta(days=3000)
        )
        self.source.replace(X509Context((svid,), BundleSet((self.ca.root.bundle(),))))

    async def __aenter__(self) -> Self:
        await self.back()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.away()

    async def away(self) -> None:
        """Stop serving; nobody listens at the address then."""
        if self._door is not None and self._server is not None:
            self._door.stop_listening()
            await self._server.stop(timedelta())
            await self._door.close(timedelta())
        self._door = self._server = None

    async def back(self) -> None:
        """Serve, at the same address as before."""
        self._door = Door()
        services = [Service("istio.v1.auth.IstioCertificateService", {"CreateCertificate": self._istio()})]
        if self._node_service:
            services.append(Service("istio_auth.node.v1.NodeService", self._node()))
        self._server = RpcServer(self._door, services)
        await self._server.start()
        context = server_context(
            self.source, any_id(), require_client_certificate=False, alpn=("h2",), clock=self.ca.clock
        )
        await self._door.listen_tls(self.address.host, self.address.port, context)

    def register(self, **registrations: Registration) -> None:
        """Put these in the place of all others and tell every agent."""
        self.ca.register(**registrations)
        for changed in self._streams:
            changed.set()

    def publish(self, *, sequence: int, extra: FakeAuthority | None = None) -> None:
        """Send a bundle with this sequence, and with another root beside our own."""
        self.sequence, self.extra = sequence, extra
        for changed in self._streams:
            changed.set()

    def _istio(self) -> Method:
        return Method.unary(self._create, istio_ca_pb2.IstioCertificateRequest, istio_ca_pb2.IstioCertificateResponse)

    def _node(self) -> dict[str, Method]:
        return {
            "Sign": Method.unary(self._sign, node_pb2.SignRequest, node_pb2.SignResponse, max_request_bytes=4 << 20),
            "Challenge": Method.unary(self._challenge, node_pb2.ChallengeRequest, node_pb2.ChallengeResponse),
            "Recover": Method.unary(self._recover, node_pb2.RecoverRequest, node_pb2.RecoverResponse),
            "Sync": Method.stream(self._sync, node_pb2.SyncRequest, node_pb2.SyncResponse),
        }

    async def _create(
        self, request: istio_ca_pb2.IstioCertificateRequest, call: Call
    ) -> istio_ca_pb2.IstioCertificateResponse:
        who = await self._caller(call)
        wanted = request.metadata.fields["ImpersonatedIdentity"].string_value
        if wanted and who.bearer in self.ca.pod_tokens:
            raise NotAuthorized("a pod asks for another's identity", public="impersonation is not allowed")
        csr = read_csr(request.csr.encode())
        spiffe_id = SpiffeID.parse(wanted) if wanted else who.spiffe_id or spiffe_id_in(csr)
        ttl = timedelta(seconds=request.validity_duration) if request.validity_duration > 0 else None
        chain = await self._signed(who, SigningRequest(spiffe_id, csr, ttl))
        elements = [write_certificates([each]).decode() for each in chain]
        return istio_ca_pb2.IstioCertificateResponse(
            cert_chain=[*elements, write_certificates([self.ca.root.root]).decode()]
        )

    async def _sign(self, request: node_pb2.SignRequest, call: Call) -> node_pb2.SignResponse:
        who = await self._caller(call)
        requests = [
            SigningRequest(
                SpiffeID.parse(entry.spiffe_id),
                x509.load_der_x509_csr(entry.csr),
                timedelta(seconds=entry.ttl_seconds) if entry.ttl_seconds > 0 else None,
            )
            for entry in request.entries
        ]
        results = []
        for each, outcome in zip(requests, await who.client.sign(requests, token=who.token), strict=True):
            if isinstance(outcome, IstioAuthError):
                refusal = node_pb2.Refusal(code=outcome.code.name, message=outcome.public)
                results.append(node_pb2.SignResult(refusal=refusal))
            else:
                assert each.csr.is_signature_valid
                results.append(node_pb2.SignResult(issued=node_pb2.Issued(chain=map(write_der, outcome))))
        return node_pb2.SignResponse(results=results)

    async def _challenge(self, request: node_pb2.ChallengeRequest, call: Call) -> node_pb2.ChallengeResponse:
        who = await self._caller(call)
        return node_pb2.ChallengeResponse(nonce=await who.client.challenge(SpiffeID.parse(request.spiffe_id)))

    async def _recover(self, request: node_pb2.RecoverRequest, call: Call) -> node_pb2.RecoverResponse:
        who = await self._caller(call)
        wanted = SigningRequest(SpiffeID.parse(request.spiffe_id), x509.load_der_x509_csr(request.csr))
        chain = await who.client.recover(
            wanted, nonce=request.nonce, node_key=request.node_key, signature=request.signature
        )
        return node_pb2.RecoverResponse(issued=node_pb2.Issued(chain=map(write_der, chain)))

    async def _sync(
        self, requests: AsyncIterator[node_pb2.SyncRequest], call: Call
    ) -> AsyncGenerator[node_pb2.SyncResponse]:
        who = await self._caller(call)
        if who.spiffe_id is None:
            raise NotAuthenticated("no certificate")
        changed = asyncio.Event()
        changed.set()
        self._streams.add(changed)

        async def listen() -> None:
            async for request in requests:
                self.reports.append(request)

        listening = asyncio.create_task(listen())
        try:
            while True:
                await changed.wait()
                changed.clear()
                yield self._news()
        finally:
            listening.cancel()
            self._streams.discard(changed)

    def _news(self) -> node_pb2.SyncResponse:
        roots = [self.ca.root.certificate, *([self.extra.certificate] if self.extra else [])]
        bundle = node_pb2.Bundle(
            trust_domain=self.ca.root.trust_domain.name,
            x509_authorities=map(write_der, roots),
            sequence=self.sequence,
        )
        put = [
            node_pb2.Registration(
                key=key,
                spiffe_id=str(each.spiffe_id),
                selectors=map(str, each.selectors),
                ttl_seconds=int(each.ttl.total_seconds()) if each.ttl else 0,
                dns_names=each.dns_names,
                hint=each.hint,
            )
            for key, each in self.ca.registered.items()
        ]
        delta = node_pb2.RegistrationDelta(epoch="fake", to_revision=self.ca.revision, put=put)
        return node_pb2.SyncResponse(bundles=[bundle], registrations=delta)

    async def _caller(self, call: Call) -> _Who:
        await self.hang.wait()
        assert isinstance(call.caller, TLSCaller)
        who = _Who(self.ca, call.caller.spiffe_id, call.metadata.get("authorization", ("",))[0].removeprefix("Bearer "))
        self.handshakes.append(f"{call.caller.chain[0].serial_number:x}" if call.caller.chain else "")
        return who

    async def _signed(self, who: _Who, request: SigningRequest) -> Chain:
        (outcome,) = await who.client.sign([request], token=who.token)
        if isinstance(outcome, IstioAuthError):
            raise outcome
        return outcome


@dataclass
class _Who:
    """The caller of one call."""

    ca: FakeCA
    spiffe_id: SpiffeID | None
    bearer: str

    @property
    def token(self) -> str | None:
        return self.bearer or None

    @property
    def client(self) -> FakeClient:
        return self.ca.proven() if self.spiffe_id else self.ca.unproven()


def spiffe_id_in(csr: x509.CertificateSigningRequest) -> SpiffeID:
    """The name in a CSR, which a careless CA believes."""
    names = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return SpiffeID.parse(names.get_values_for_type(x509.UniformResourceIdentifier)[0])
