"""The CertificateClient port: what the agent asks of a CA, and of whatever kind of CA.

Nothing that comes back is believed here: `answer` judges certificates, `trust` bundles, `registrations` deltas.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol, TypeAlias, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from google.protobuf.message import Message

from istio_auth.bundle import TrustBundle
from istio_auth.errors import IstioAuthError, MissingError
from istio_auth.spiffe_id import SpiffeID
from node_agent.workloads.registrations import Delta

Response = TypeVar("Response", bound=Message)
Metadata: TypeAlias = Sequence[tuple[str, str]]
Chain: TypeAlias = tuple[x509.Certificate, ...]
Outcome: TypeAlias = Chain | IstioAuthError


class NotOffered(MissingError):
    """This CA does not have that service, or that method."""


@dataclass(frozen=True, slots=True)
class SigningRequest:
    """One certificate to ask for.

    Args:
        spiffe_id: the identity.
        csr: carries the public key.
        ttl: the lifetime to ask for; None for what the CA gives.
        own: whether the identity is the caller's own, and not a workload's.
    """

    spiffe_id: SpiffeID
    csr: x509.CertificateSigningRequest
    ttl: timedelta | None = None
    own: bool = False

    @property
    def csr_der(self) -> bytes:
        """The CSR in DER."""
        return self.csr.public_bytes(Encoding.DER)


@dataclass(frozen=True, slots=True)
class Report:
    """What the agent tells the CA of itself.

    Args:
        epoch: of the revision held; empty at first.
        revision: of the registrations held.
        bundle_sequence: of the own trust domain's bundle held.
        consumers: how many are served that bundle.
        consumers_current: how many of them have taken it.
        laggards: some of the others, by name.
    """

    epoch: str = ""
    revision: int = 0
    bundle_sequence: int = 0
    consumers: int = 0
    consumers_current: int = 0
    laggards: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class News:
    """What the CA tells: all bundles, if one changed, and what changed in the registrations."""

    bundles: tuple[TrustBundle, ...] = ()
    delta: Delta | None = None


class Calls(Protocol):
    """A way to make gRPC calls to the CA. A method that the CA does not have raises `NotOffered`."""

    async def unary(
        self,
        path: str,
        request: Message,
        response_type: type[Response],
        *,
        timeout: timedelta,  # noqa: ASYNC109  # it becomes the call's deadline, which the CA is told
        metadata: Metadata = (),
    ) -> Response:
        """One request, one response."""
        ...

    def stream(
        self,
        path: str,
        requests: AsyncIterator[Message],
        response_type: type[Response],
    ) -> AsyncIterator[Response]:
        """A stream both ways."""
        ...


class Signer(Protocol):
    """Asks a CA for certificates. How the caller proves its identity is up to the implementation."""

    async def sign(self, requests: Sequence[SigningRequest]) -> list[Outcome]:
        """The certificates, each answered for itself, in the order of the requests.

        Raises:
            IstioAuthError: nothing could be asked.
        """
        ...


class CertificateClient(Protocol):
    """Asks a CA for certificates and for news."""

    async def sign(self, requests: Sequence[SigningRequest], *, token: str | None = None) -> list[Outcome]:
        """The certificates, each answered for itself, in the order of the requests.

        Args:
            requests: what to ask for.
            token: a join token to prove ourselves by, instead of our certificate.

        Raises:
            NotOffered: the CA does not have this service.
            IstioAuthError: nothing could be asked.
        """
        ...

    def sync(self, reports: AsyncIterator[Report]) -> AsyncIterator[News]:
        """News for as long as the connection lasts.

        Raises:
            NotOffered: the CA does not have this service.
            IstioAuthError: the connection ended.
        """
        ...

    async def challenge(self, spiffe_id: SpiffeID) -> bytes:
        """A nonce for a lapsed agent to sign (see `recover`)."""
        ...

    async def recover(self, request: SigningRequest, *, nonce: bytes, node_key: bytes, signature: bytes) -> Chain:
        """A new SVID for a lapsed agent that proves its node key.

        Args:
            request: the agent's own identity and the CSR of its new key.
            nonce: from `challenge`.
            node_key: the SubjectPublicKeyInfo of the enrolled key, in DER.
            signature: by that key, over `istio_auth.recovery.recovery_message`.

        Raises:
            NotOffered: the CA knows no such way.
            IstioAuthError: the CA refused, or is away.
        """
        ...


class AnyCA:
    """A CA of either kind: asked by NodeService, or by Istio's contract if it has no NodeService.

    Args:
        node: the client of the one.
        istio: the client of the other.
    """

    def __init__(self, node: CertificateClient, istio: CertificateClient) -> None:
        self._node, self._istio = node, istio
        self.has_node_service: bool | None = None

    async def sign(self, requests: Sequence[SigningRequest], *, token: str | None = None) -> list[Outcome]:
        """See `CertificateClient.sign`."""
        if self.has_node_service is not False:
            try:
                outcomes = await self._node.sign(requests, token=token)
            except NotOffered:
                self.has_node_service = False
            else:
                self.has_node_service = True
                return outcomes
        return await self._istio.sign(requests, token=token)

    async def sync(self, reports: AsyncIterator[Report]) -> AsyncIterator[News]:
        """See `CertificateClient.sync`."""
        try:
            async for news in self._node.sync(reports):
                self.has_node_service = True
                yield news
        except NotOffered:
            self.has_node_service = False
            raise

    async def challenge(self, spiffe_id: SpiffeID) -> bytes:
        """See `CertificateClient.challenge`."""
        return await self._node.challenge(spiffe_id)

    async def recover(self, request: SigningRequest, *, nonce: bytes, node_key: bytes, signature: bytes) -> Chain:
        """See `CertificateClient.recover`."""
        return await self._node.recover(request, nonce=nonce, node_key=node_key, signature=signature)
