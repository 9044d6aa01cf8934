"""Istio's certificate contract as a `CertificateClient`: one certificate a call, no news, no recovery.

`IstioCertificateService/CreateCertificate`, as istiod and its drop-in replacements have it. The last element of an
answer holds the CA's roots. They are not trusted for being there, so nobody looks at them: whom we trust was pinned.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta

from istio_auth.errors import Exhausted, InvalidPEM, IstioAuthError, NotReady
from istio_auth.pem import read_certificates, write_csr
from istio_auth.proto.istio_ca_pb2 import IstioCertificateRequest, IstioCertificateResponse
from istio_auth.spiffe_id import SpiffeID
from node_agent.ca_client.answer import BadAnswer
from node_agent.ca_client.port import Calls, Chain, Metadata, News, NotOffered, Outcome, Report, SigningRequest

CREATE_CERTIFICATE = "/istio.v1.auth.IstioCertificateService/CreateCertificate"
_AT_ONCE = 8


class IstioClient:
    """A CA that has Istio's contract.

    Args:
        calls: the way to it.
        timeout: for one call.
        metadata: goes with every call.
    """

    def __init__(self, calls: Calls, *, timeout: timedelta, metadata: Metadata = ()) -> None:
        self._calls, self._timeout, self._metadata = calls, timeout, metadata

    async def sign(self, requests: Sequence[SigningRequest], *, token: str | None = None) -> list[Outcome]:
        """See `CertificateClient.sign`."""
        turn = asyncio.Semaphore(_AT_ONCE)
        outcomes = await asyncio.gather(*(self._one(request, token, turn) for request in requests))
        failures = [outcome for outcome in outcomes if isinstance(outcome, IstioAuthError)]
        for failure in failures:
            # One that asks nothing of a request's content, or all of them, is the CA's trouble and not the request's.
            if isinstance(failure, NotOffered) or (len(failures) == len(outcomes) and _is_passing(failure)):
                raise failure
        return outcomes

    def sync(self, reports: AsyncIterator[Report]) -> AsyncIterator[News]:
        """There is none."""
        del reports
        raise NotOffered("Istio's contract sends no registrations and no bundles")

    async def challenge(self, spiffe_id: SpiffeID) -> bytes:
        """There is none."""
        raise _no_recovery(spiffe_id)

    async def recover(self, request: SigningRequest, *, nonce: bytes, node_key: bytes, signature: bytes) -> Chain:
        """There is none."""
        del nonce, node_key, signature
        raise _no_recovery(request.spiffe_id)

    async def _one(self, request: SigningRequest, token: str | None, turn: asyncio.Semaphore) -> Outcome:
        message = IstioCertificateRequest(csr=write_csr(request.csr).decode())
        if request.ttl is not None:
            message.validity_duration = int(request.ttl.total_seconds())
        if not request.own:
            message.metadata.update({"ImpersonatedIdentity": str(request.spiffe_id)})
        try:
            async with turn:
                response = await self._calls.unary(
                    CREATE_CERTIFICATE,
                    message,
                    IstioCertificateResponse,
                    timeout=self._timeout,
                    metadata=(*self._metadata, *bearer(token)),
                )
        except IstioAuthError as error:
            return error
        return _chain(response)


def bearer(token: str | None) -> tuple[tuple[str, str], ...]:
    """The metadata that carries a token."""
    return () if token is None else (("authorization", f"Bearer {token}"),)


def _chain(response: IstioCertificateResponse) -> Outcome:
    if len(response.cert_chain) < 2:
        return BadAnswer("chain", f"{len(response.cert_chain)} elements, and at least a leaf and the roots are due")
    try:
        return read_certificates("\n".join(response.cert_chain[:-1]).encode())
    except InvalidPEM as error:
        return BadAnswer("unparsable", str(error))


def _is_passing(failure: IstioAuthError) -> bool:
    return isinstance(failure, NotReady | Exhausted) and not isinstance(failure, BadAnswer)


def _no_recovery(spiffe_id: SpiffeID) -> NotOffered:
    return NotOffered(f"this CA has no way back for a lapsed {spiffe_id}: it needs a new join token")
