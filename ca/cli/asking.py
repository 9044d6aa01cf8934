"""Issuing by a running CA: calls of Istio's certificate service, with a join token as proof.

A join token enrols the agent that it names, with the key made here as its node key. The identity asked for is the
agent's own, or one that the registrations file lets this agent ask for (Istio's `ImpersonatedIdentity`): then the
agent joins first, with a certificate of its own that lives for minutes, and asks with that as proof.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from cryptography import x509

from ca.agents.agent import agent_name
from ca.cli.issuing import Delivery, Wanted, delivered
from ca.cli.material import read_bundles
from istio_auth.authorize import is_id
from istio_auth.bundle import BundleSet
from istio_auth.door import Portal
from istio_auth.errors import ConfigurationError, InvalidPEM, MissingError, NotReady
from istio_auth.files import read_secret
from istio_auth.host_port import HostPort
from istio_auth.keys import new_private_key, signature_hash
from istio_auth.pem import read_certificates, write_csr
from istio_auth.proto.istio_ca_pb2 import IstioCertificateRequest, IstioCertificateResponse
from istio_auth.rpc.channel import Channel
from istio_auth.sources.memory import MemorySource
from istio_auth.spiffe_id import SpiffeID, TrustDomain
from istio_auth.svid import X509SVID
from istio_auth.tls import client_context
from istio_auth.x509_source import X509Context

METHOD = "/istio.v1.auth.IstioCertificateService/CreateCertificate"
IMPERSONATED = "ImpersonatedIdentity"
_MAX_TOKEN_BYTES = 16 << 10
_TO_JOIN = timedelta(minutes=10)


async def ask(
    wanted: Wanted, server: str, trust_bundle: str, token_file: Path | None, *, patience: timedelta
) -> Delivery:
    """Ask a running CA.

    Args:
        wanted: what to ask for. DNS names come from the registration, and can not be asked for.
        server: `host:port` of the CA.
        trust_bundle: the file with the trust bundle that the CA's certificate is verified with.
        token_file: the file with the join token.
        patience: how long to wait for each answer, dialling included.

    Raises:
        ConfigurationError: an option is missing or can not be used.
        NotAuthenticated, NotAuthorized: the CA refused, or could not prove to be the CA.
        NotReady: it was not reached, or answered with something else.
    """
    if not trust_bundle or token_file is None:
        raise ConfigurationError("--server needs --trust-bundle FILE and --token-file FILE")
    if wanted.dns_names:
        raise ConfigurationError("a running CA puts the DNS names of the registration into a certificate: omit --dns")
    domain = wanted.spiffe_id.trust_domain
    ca = _CA(HostPort.parse(server), read_bundles(trust_bundle, domain), domain, patience)
    token = _token(token_file)
    if agent_name(wanted.spiffe_id) is not None:
        chain = await ca.sign(_request(wanted), token=token)
    else:
        agent = Wanted(wanted.spiffe_id, new_private_key(), _TO_JOIN)
        joined = X509SVID.of(await ca.sign(_request(agent), token=token), agent.key)
        chain = await ca.sign(_request(wanted, impersonated=True), svid=joined)
    return delivered(chain, wanted, ca.bundles.bundle(domain))


@dataclass(frozen=True, slots=True)
class _CA:
    """A running CA, and the trust bundles that its certificate is verified with."""

    address: HostPort
    bundles: BundleSet
    trust_domain: TrustDomain
    patience: timedelta

    async def sign(
        self, request: IstioCertificateRequest, *, svid: X509SVID | None = None, token: str = ""
    ) -> tuple[x509.Certificate, ...]:
        """Make one call, with an SVID or a token as proof, and return the chain in the answer."""
        metadata = (("authorization", f"Bearer {token}"),) if token else ()
        source = MemorySource(X509Context(() if svid is None else (svid,), self.bundles))
        context = client_context(source, is_id(SpiffeID.for_ca(self.trust_domain)), alpn=("h2",))
        async with Portal(self.address.host, self.address.port, context) as portal, Channel(portal) as channel:
            answer = await channel.unary(
                METHOD, request, IstioCertificateResponse, timeout=self.patience, metadata=metadata
            )
        return _chain(answer)


def _token(file: Path) -> str:
    try:
        text = read_secret(file, _MAX_TOKEN_BYTES).decode("ascii").strip()
    except MissingError as error:
        raise ConfigurationError(str(error)) from error
    except UnicodeDecodeError:
        text = ""
    if not text or not text.isprintable():
        raise ConfigurationError(f"{file} holds no token")
    return text


def _request(wanted: Wanted, *, impersonated: bool = False) -> IstioCertificateRequest:
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(wanted.spiffe_id))])
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).add_extension(names, critical=True)
    request = IstioCertificateRequest(csr=write_csr(csr.sign(wanted.key, signature_hash(wanted.key))).decode())
    if wanted.ttl is not None:
        request.validity_duration = int(wanted.ttl.total_seconds())
    if impersonated:
        request.metadata[IMPERSONATED] = str(wanted.spiffe_id)
    return request


def _chain(answer: IstioCertificateResponse) -> tuple[x509.Certificate, ...]:
    """Leaf and intermediates: all elements but the last, which holds the roots."""
    try:
        return tuple(one for element in answer.cert_chain[:-1] for one in read_certificates(element.encode()))
    except InvalidPEM as error:
        raise NotReady(f"the CA answered with something that is no certificate chain: {error}") from error
