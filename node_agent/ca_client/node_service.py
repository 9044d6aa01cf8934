"""Our own NodeService as a `CertificateClient`: many certificates a call, news as they happen, a way back.

The messages are those of `istio_auth/proto/node.proto`; whatever is wrong in one is told, entry by entry.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from datetime import timedelta

from istio_auth import errors
from istio_auth.bundle import TrustBundle
from istio_auth.errors import Code, InvalidPEM, IstioAuthError, MalformedError, NotReady
from istio_auth.pem import read_der_certificate
from istio_auth.proto import node_pb2
from istio_auth.registration import Registration, Selector
from istio_auth.spiffe_id import SpiffeID, TrustDomain
from node_agent.ca_client.answer import BadAnswer
from node_agent.ca_client.istio_contract import bearer
from node_agent.ca_client.port import Calls, Chain, News, Outcome, Report, SigningRequest
from node_agent.workloads.registrations import Delta, Entry, checked

PATH = "/istio_auth.node.v1.NodeService"
_MAX_REASON = 500
_MAX_HINT = 366 * 86400
_LARGEST = (1 << 64) - 1
_ERRORS: Mapping[str, type[IstioAuthError]] = {
    Code.MALFORMED.name: errors.MalformedError,
    Code.NOT_AUTHENTICATED.name: errors.NotAuthenticated,
    Code.NOT_AUTHORIZED.name: errors.NotAuthorized,
    Code.MISSING.name: errors.MissingError,
    Code.CONFLICT.name: errors.ConflictError,
    Code.NOT_READY.name: errors.NotReady,
    Code.EXHAUSTED.name: errors.Exhausted,
}


class NodeServiceClient:
    """A CA that has NodeService.

    Args:
        calls: the way to it.
        trust_domain: our own.
        timeout: for one call.
        version: ours, to tell the CA.
    """

    def __init__(self, calls: Calls, trust_domain: TrustDomain, *, timeout: timedelta, version: str = "") -> None:
        self._calls, self._trust_domain = calls, trust_domain
        self._timeout, self._version = timeout, version

    async def sign(self, requests: Sequence[SigningRequest], *, token: str | None = None) -> list[Outcome]:
        """See `CertificateClient.sign`."""
        response = await self._calls.unary(
            f"{PATH}/Sign",
            node_pb2.SignRequest(entries=map(_entry, requests)),
            node_pb2.SignResponse,
            timeout=self._timeout,
            metadata=bearer(token),
        )
        if len(response.results) != len(requests):
            raise NotReady(f"the CA answered {len(response.results)} of {len(requests)} entries")
        return [_outcome(result) for result in response.results]

    async def sync(self, reports: AsyncIterator[Report]) -> AsyncIterator[News]:
        """See `CertificateClient.sync`."""
        async for response in self._calls.stream(f"{PATH}/Sync", self._messages(reports), node_pb2.SyncResponse):
            yield self._news(response)

    async def challenge(self, spiffe_id: SpiffeID) -> bytes:
        """See `CertificateClient.challenge`."""
        message = node_pb2.ChallengeRequest(spiffe_id=str(spiffe_id))
        response = await self._calls.unary(
            f"{PATH}/Challenge", message, node_pb2.ChallengeResponse, timeout=self._timeout
        )
        return response.nonce

    async def recover(self, request: SigningRequest, *, nonce: bytes, node_key: bytes, signature: bytes) -> Chain:
        """See `CertificateClient.recover`."""
        message = node_pb2.RecoverRequest(
            spiffe_id=str(request.spiffe_id), nonce=nonce, node_key=node_key, signature=signature, csr=request.csr_der
        )
        response = await self._calls.unary(f"{PATH}/Recover", message, node_pb2.RecoverResponse, timeout=self._timeout)
        chain = _chain(response.issued.chain)
        if isinstance(chain, IstioAuthError):
            raise chain
        return chain

    async def _messages(self, reports: AsyncIterator[Report]) -> AsyncIterator[node_pb2.SyncRequest]:
        async for report in reports:
            yield node_pb2.SyncRequest(
                epoch=report.epoch,
                revision=report.revision,
                bundle_sequence=min(report.bundle_sequence, _LARGEST),  # a pinned bundle may say any number
                consumers=report.consumers,
                consumers_current=report.consumers_current,
                laggards=report.laggards,
                agent_version=self._version,
            )

    def _news(self, response: node_pb2.SyncResponse) -> News:
        try:
            bundles = tuple(map(_bundle, response.bundles))
        except MalformedError as error:
            raise NotReady(f"the CA sent a bundle that is none: {error}") from error
        delta = _delta(response.registrations, self._trust_domain) if response.HasField("registrations") else None
        return News(bundles, delta)


def _entry(request: SigningRequest) -> node_pb2.SignEntry:
    seconds = 0 if request.ttl is None else int(request.ttl.total_seconds())
    return node_pb2.SignEntry(spiffe_id=str(request.spiffe_id), csr=request.csr_der, ttl_seconds=seconds)


def _outcome(result: node_pb2.SignResult) -> Outcome:
    if result.HasField("issued"):
        return _chain(result.issued.chain)
    refusal = result.refusal
    hint = timedelta(milliseconds=refusal.retry_after_ms) if refusal.retry_after_ms > 0 else None
    kind = _ERRORS.get(refusal.code, IstioAuthError)
    return kind(f"the CA refused: {refusal.message[:_MAX_REASON]!a} ({refusal.code[:40]!a})", retry_after=hint)


def _chain(ders: Iterable[bytes]) -> Outcome:
    try:
        return tuple(map(read_der_certificate, ders))
    except InvalidPEM as error:
        return BadAnswer("unparsable", str(error))


def _bundle(message: node_pb2.Bundle) -> TrustBundle:
    hint = min(message.refresh_hint_seconds, _MAX_HINT)
    return TrustBundle(
        TrustDomain(message.trust_domain),
        tuple(dict.fromkeys(map(read_der_certificate, message.x509_authorities))),
        message.sequence,
        timedelta(seconds=hint) if hint > 0 else None,
    )


def _delta(message: node_pb2.RegistrationDelta, trust_domain: TrustDomain) -> Delta:
    put = {entry.key: _registration(entry, trust_domain) for entry in message.put}
    return Delta(message.epoch, message.from_revision, message.to_revision, put, frozenset(message.removed))


def _registration(message: node_pb2.Registration, trust_domain: TrustDomain) -> Entry:
    try:
        registration = Registration(
            SpiffeID.parse(message.spiffe_id),
            frozenset(map(Selector.parse, message.selectors)),
            timedelta(seconds=min(message.ttl_seconds, _MAX_HINT)) if message.ttl_seconds > 0 else None,
            tuple(message.dns_names),
            message.hint,
        )
        return checked(registration, trust_domain)
    except MalformedError as error:
        return error
