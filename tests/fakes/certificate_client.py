"""A CA without a network: a `CertificateClient` that misbehaves in one way on request, and counts what it is asked."""

from __future__ import annotations

import asyncio
import enum
import hashlib
import secrets
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from istio_auth.clock import Clock
from istio_auth.errors import IstioAuthError, NotAuthenticated, NotReady
from istio_auth.keys import allowed_public_key, check_signature
from istio_auth.recovery import recovery_message
from istio_auth.registration import Registration
from istio_auth.spiffe_id import SpiffeID
from node_agent.ca_client.port import Chain, News, NotOffered, Outcome, Report, SigningRequest
from node_agent.workloads.registrations import Delta
from tests.fakes.authority import FakeAuthority


class Fault(enum.Enum):
    """The one thing that is wrong with a certificate."""

    NONE = "none"
    WRONG_KEY = "wrong key"
    WRONG_NAME = "wrong name"
    EXPIRED = "expired"
    NOT_YET_VALID = "not yet valid"
    UNKNOWN_ROOT = "unknown root"
    SHORT_CHAIN = "short chain"
    TOO_SHORT = "too short"
    CA_CERTIFICATE = "CA certificate"
    EMPTY = "empty"


class FakeCA:
    """Issues by name, to whoever asks.

    Args:
        clock: tells the time around which certificates are valid.
        trust_domain: its own.
        ttl: the lifetime where none is asked for.
    """

    def __init__(
        self, clock: Clock, trust_domain: str = "cluster.local", *, ttl: timedelta = timedelta(hours=1)
    ) -> None:
        now = clock.now()
        self.clock, self.ttl = clock, ttl
        self.root = FakeAuthority(trust_domain, now=now, lifetime=timedelta(days=3650))
        self.authority = FakeAuthority(trust_domain, parent=self.root, now=now, lifetime=timedelta(days=3650))
        self.foreign = FakeAuthority(trust_domain, now=now, lifetime=timedelta(days=3650))
        self.fault = Fault.NONE
        self.fault_of: SpiffeID | None = None  # whose certificates alone have the fault; None for everybody's
        self.set_back: timedelta | None = None  # how far before now a validity begins, whatever its length
        self.failure: IstioAuthError | None = None  # raised by every call
        self.refusals: dict[SpiffeID, IstioAuthError] = {}
        self.most: int | None = None  # entries that it can sign before a call's deadline
        self.poison: set[SpiffeID] = set()  # whoever asks for one of these gets nothing for the whole call
        self.tokens: set[str] = set()
        self.pod_tokens: dict[str, SpiffeID] = {}  # of whom each is, as a review finds; they can be used again
        self.node_keys: dict[SpiffeID, bytes] = {}
        self.offers_node_service = True
        self.batches: list[list[SpiffeID]] = []
        self.calls: list[str] = []
        self.reports: list[Report] = []
        self.news: asyncio.Queue[News | IstioAuthError] = asyncio.Queue()
        self.registered: dict[str, Registration] = {}
        self.revision = 0

    @property
    def signed(self) -> int:
        """How many certificates were asked for."""
        return sum(map(len, self.batches))

    def proven(self) -> FakeClient:
        """What an agent with an SVID talks to."""
        return FakeClient(self, proven=True)

    def unproven(self) -> FakeClient:
        """What an agent without one talks to."""
        return FakeClient(self, proven=False)

    def issue(self, spiffe_id: SpiffeID, key: object, ttl: timedelta | None = None) -> Chain:
        """A chain, with the one fault that was asked for."""
        fault = self.fault if self.fault_of in {None, spiffe_id} else Fault.NONE
        public_key = allowed_public_key(key)
        now, life = self.clock.now(), ttl or self.ttl
        authority = self.foreign if fault is Fault.UNKNOWN_ROOT else self.authority
        set_back = min(timedelta(minutes=2), life / 10) if self.set_back is None else self.set_back
        leaf = authority.leaf(spiffe_id.path, not_before=now - set_back, not_after=now + life)
        if fault is Fault.WRONG_KEY:
            public_key = ec.generate_private_key(ec.SECP256R1()).public_key()
        elif fault is Fault.WRONG_NAME:
            leaf = replace(leaf, uris=[f"{spiffe_id}-other"])
        elif fault is Fault.EXPIRED:
            leaf = replace(leaf, not_before=now - timedelta(hours=2), not_after=now - timedelta(hours=1))
        elif fault is Fault.NOT_YET_VALID:
            leaf = replace(leaf, not_before=now + timedelta(minutes=10), not_after=now + timedelta(hours=1))
        elif fault is Fault.TOO_SHORT:
            leaf = replace(leaf, not_after=now + timedelta(seconds=2))
        elif fault is Fault.CA_CERTIFICATE:
            leaf = replace(leaf, ca=True)
        elif fault is Fault.EMPTY:
            return ()
        intermediates = () if fault is Fault.SHORT_CHAIN else authority.intermediates
        return (authority.sign(leaf, public_key), *intermediates)

    def register(self, **registrations: Registration) -> News:
        """What a stream says after these were put in the place of all others."""
        self.revision += 1
        self.registered = registrations
        return News((self.root.bundle(),), Delta("epoch", 0, self.revision, registrations))


class FakeClient:
    """One way to a `FakeCA`."""

    def __init__(self, ca: FakeCA, *, proven: bool) -> None:
        self._ca, self._is_proven = ca, proven

    async def sign(self, requests: Sequence[SigningRequest], *, token: str | None = None) -> list[Outcome]:
        ca = self._ca
        ca.calls.append("sign" if token is None else "enrol")
        ca.batches.append([request.spiffe_id for request in requests])
        if ca.failure:
            raise ca.failure
        if ca.most is not None and len(requests) > ca.most:
            raise NotReady("deadline exceeded")
        if not ca.poison.isdisjoint(request.spiffe_id for request in requests):
            raise IstioAuthError("a defect")
        if token in ca.pod_tokens:
            return [self._outcome(replace(request, spiffe_id=ca.pod_tokens[token])) for request in requests]
        if token is None and not self._is_proven:
            raise NotAuthenticated("nothing was presented")
        if token is not None:
            if token not in ca.tokens:
                raise NotAuthenticated("the token is unknown, or was used")
            ca.tokens.remove(token)
            ca.node_keys[requests[0].spiffe_id] = _fingerprint(requests[0].csr)
        return [self._outcome(request) for request in requests]

    async def sync(self, reports: AsyncIterator[Report]) -> AsyncIterator[News]:
        self._ca.calls.append("sync")
        if self._ca.failure:
            raise self._ca.failure
        if not self._ca.offers_node_service:
            raise NotOffered("no such service")

        async def listen() -> None:
            async for report in reports:
                self._ca.reports.append(report)

        listening = asyncio.create_task(listen())
        try:
            while True:
                item = await self._ca.news.get()
                if isinstance(item, IstioAuthError):
                    raise item
                yield item
        finally:
            listening.cancel()

    async def challenge(self, spiffe_id: SpiffeID) -> bytes:
        self._ca.calls.append(f"challenge {spiffe_id.path}")
        if self._ca.failure:
            raise self._ca.failure
        if not self._ca.offers_node_service:
            raise NotOffered("no such service")
        return secrets.token_bytes(32)

    async def recover(self, request: SigningRequest, *, nonce: bytes, node_key: bytes, signature: bytes) -> Chain:
        self._ca.calls.append("recover")
        key = allowed_public_key(load_der_public_key(node_key))
        if self._ca.node_keys.get(request.spiffe_id) != hashlib.sha256(node_key).digest():
            raise NotAuthenticated("another node key")
        try:
            check_signature(key, signature, recovery_message(request.spiffe_id, nonce, request.csr_der))
        except InvalidSignature as error:
            raise NotAuthenticated("not signed by the node key") from error
        outcome = self._outcome(request)
        if isinstance(outcome, IstioAuthError):
            raise outcome
        return outcome

    def _outcome(self, request: SigningRequest) -> Outcome:
        if (refusal := self._ca.refusals.get(request.spiffe_id)) is not None:
            return refusal
        return self._ca.issue(request.spiffe_id, request.csr.public_key(), request.ttl)


def away() -> NotReady:
    """What a CA that can not be reached looks like."""
    return NotReady("connection refused")


def _fingerprint(csr: x509.CertificateSigningRequest) -> bytes:
    return hashlib.sha256(csr.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()
