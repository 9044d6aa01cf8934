"""A standalone CA in a folder, asked without a network: its services are called as the door would have them called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from ca.agents.join_token import JoinTokenFolder
from ca.agents.recovery import Recovery
from ca.certificate_authority import Settings
from ca.platform.standalone import Standalone
from ca.service.istio import IstioCertificateService
from ca.service.node import NodeService
from ca.service.sync import Sync
from istio_auth.door import TLSCaller
from istio_auth.keys import PrivateKey
from istio_auth.pem import read_certificates, read_der_certificate
from istio_auth.proto import node_pb2
from istio_auth.proto.istio_ca_pb2 import IstioCertificateRequest
from istio_auth.rpc.method import Call
from istio_auth.spiffe_id import SpiffeID, TrustDomain
from istio_auth.svid import spiffe_id_of
from tests.fakes.clock import FakeClock

DOMAIN = TrustDomain("cluster.local")
NOBODY = TLSCaller((), None, "192.0.2.1:1000")
WEB = SpiffeID.parse("spiffe://cluster.local/ns/default/sa/web")
Metadatum: TypeAlias = str | float | bool | list[str] | dict[str, str] | None
NODE = SpiffeID.for_agent(DOMAIN, "node-1")
REGISTERED = f'''[[registration]]
spiffe_id = "{WEB}"
agents = ["node-1"]
selectors = ["unix:uid:1000"]
ttl = "1h"
dns_names = ["web.default.svc"]
'''


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def csr(
    key: PrivateKey,
    *uris: str,
    extra: x509.ExtensionType | None = None,
) -> x509.CertificateSigningRequest:
    """A signing request that wishes for these names."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    if uris:
        names = x509.SubjectAlternativeName(list(map(x509.UniformResourceIdentifier, uris)))
        builder = builder.add_extension(names, critical=False)
    if extra is not None:
        builder = builder.add_extension(extra, critical=True)
    return builder.sign(key, hashes.SHA256())


def der(request: x509.CertificateSigningRequest) -> bytes:
    return request.public_bytes(Encoding.DER)


def pem(request: x509.CertificateSigningRequest) -> str:
    return request.public_bytes(Encoding.PEM).decode()


def caller_of(chain: Sequence[x509.Certificate]) -> TLSCaller:
    """The caller that the door makes of a chain it has verified."""
    return TLSCaller(tuple(chain), spiffe_id_of(chain[0]), "192.0.2.1:1000")


def call(caller: TLSCaller = NOBODY, *authorization: str, request_id: str = "r1") -> Call:
    metadata = {"authorization": authorization} if authorization else {}
    return Call(caller, metadata, request_id, 10.0)


def istio_request(
    csr_pem: str,
    *,
    seconds: int = 0,
    on_behalf_of: str | None = None,
    metadata: Mapping[str, Metadatum] | None = None,
) -> IstioCertificateRequest:
    request = IstioCertificateRequest(csr=csr_pem, validity_duration=seconds)
    if metadata is not None:
        request.metadata.update(metadata)
    if on_behalf_of is not None:
        request.metadata.update({"ImpersonatedIdentity": on_behalf_of})
    return request


class StandaloneCA:
    """The CA, its services and its operator.

    Args:
        folder: where its files go.
        clock: what it goes by.
        registrations: what is registered at first.
        plugged_in: the folder of a plugged-in authority, if there is one.
        settings: what differs from the usual settings.
    """

    def __init__(
        self,
        folder: Path,
        clock: FakeClock,
        *,
        registrations: str = REGISTERED,
        plugged_in: Path | None = None,
        **settings: object,
    ) -> None:
        self.clock = clock
        self.folder = folder / "state"
        self.registrations = folder / "registrations.toml"
        folder.mkdir(exist_ok=True)
        self.registrations.write_text(registrations)
        usual = Settings(DOMAIN, self.folder, self.registrations, ["istio-ca.test"], **settings)  # type: ignore[arg-type]  # fields of the settings, by name
        self.platform = Standalone(usual, clock, plugged_in=plugged_in)
        self.tokens = JoinTokenFolder(self.folder / "tokens")
        self.istio = IstioCertificateService(self.platform.admission, self.platform.authority)
        self.sync = Sync(
            admission=self.platform.admission,
            authority=self.platform.authority,
            registrations=self.platform.registrations,
            agents=self.platform.agents,
            book=self.platform.sync_book,
            clock=clock,
        )
        recovery = Recovery(DOMAIN, self.platform.agents, clock, window=usual.recovery_window)
        self.node = NodeService(self.platform.admission, recovery, self.sync)

    def token(self, agent: str = "node-1") -> str:
        """A new join token, as the operator makes it."""
        return self.tokens.create(agent, self.clock.now())[0]

    async def enrolled(self, agent: str = "node-1", *, node_key: PrivateKey | None = None) -> TLSCaller:
        """An agent that has joined, as a caller with its SVID."""
        request = istio_request(pem(csr(node_key or new_key())))
        response = await self.istio.create_certificate(request, call(NOBODY, f"Bearer {self.token(agent)}"))
        return caller_of(read_certificates("".join(response.cert_chain[:-1]).encode()))

    async def signed(self, caller: TLSCaller, *wanted: str) -> list[node_pb2.SignResult]:
        """What a batch for these identities gives."""
        entries = [node_pb2.SignEntry(spiffe_id=name, csr=der(csr(new_key()))) for name in wanted]
        return list((await self.node.sign(node_pb2.SignRequest(entries=entries), call(caller))).results)

    async def workload(self, agent: TLSCaller, wanted: SpiffeID = WEB) -> TLSCaller:
        """A workload with a certificate that it got through an agent, as a caller."""
        (result,) = await self.signed(agent, str(wanted))
        return caller_of(tuple(map(read_der_certificate, result.issued.chain)))
