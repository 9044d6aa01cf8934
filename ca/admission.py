"""The one way from a proven caller to a certificate, for every service of the CA.

    vet the CSR -> ask the registry -> use up what is good once -> keep what must be kept -> issue -> keep its end

Each wish of a call is judged for itself, and one line of audit is written for each. The order matters. Strangers are
turned away before any of their bytes are parsed. A mistake in a request costs nobody a join token. An agent's node key,
and the identities it holds, are on disk before anything is signed; the end of its SVID is on disk before the SVID is
handed out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

from ca.agents.agent import Agents, agent_name
from ca.attest import Attested, Attestor, Evidence
from ca.audit import Audit
from ca.csr import VettedCSR, vet_csr, vet_csr_der
from ca.gathering import Gathering
from ca.issuer import IssuedSVID, Issuer, Order
from ca.registry import Registry
from istio_auth.clock import Clock
from istio_auth.errors import ConfigurationError, IstioAuthError, NotAuthenticated, NotAuthorized, NotReady
from istio_auth.spiffe_id import SpiffeID


@dataclass(frozen=True, slots=True)
class Wish:
    """One certificate that a caller wants.

    Args:
        csr: the signing request.
        pem: whether it is in PEM; in DER otherwise.
        spiffe_id: the identity wanted, as the caller wrote it; empty for its own.
        ttl: the lifetime wanted, or None.
        workload_token: the workload's own proof, if the caller passes one on.
    """

    csr: bytes
    pem: bool
    spiffe_id: str = ""
    ttl: timedelta | None = None
    workload_token: str = field(default="", repr=False)


class Admission:
    """Issues the certificates that callers wish for. Lives on one event loop.

    Args:
        attestor: tells who calls.
        registry: tells who may have what.
        issuer: signs.
        agents: keeps what must be kept of agents.
        audit: writes the lines.
        clock: tells the time.
        threads: how many threads vet CSRs.
    """

    def __init__(
        self,
        *,
        attestor: Attestor,
        registry: Registry,
        issuer: Issuer,
        agents: Agents,
        audit: Audit,
        clock: Clock,
        threads: int = 1,
    ) -> None:
        self.audit = audit
        self._attestor = attestor
        self._registry = registry
        self._issuer = issuer
        self._agents = agents
        self._clock = clock
        self._vetting = Gathering(_vet_all, threads=threads, name="vet")

    async def attest(self, evidence: Evidence, request_id: str) -> Attested:
        """Who calls (see `Attestor.attest`); a refusal is on record."""
        try:
            with _ours_to_mend():
                return await self._attestor.attest(evidence)
        except IstioAuthError as error:
            self.audit.refused(error, request_id, caller=str(evidence.caller))
            raise

    async def issue(self, wish: Wish, attested: Attested, request_id: str) -> IssuedSVID:
        """The certificate for one wish.

        Raises:
            CSRRefused: the CSR is not acceptable.
            NotAuthorized: the caller may not have that identity.
            TTLRefused: a longer life is asked for than the CA gives.
            NotAuthenticated: the proof was good only once, and somebody else used it first.
            NotReady, Exhausted: not now.
        """
        (result,) = await self.issue_many((wish,), attested, request_id)
        if isinstance(result, IstioAuthError):
            raise result
        return result

    async def issue_many(
        self, wishes: Sequence[Wish], attested: Attested, request_id: str
    ) -> list[IssuedSVID | IstioAuthError]:
        """The certificates for these wishes in their order, with the error in the place of each that failed."""
        results: list[IssuedSVID | IstioAuthError] = [IstioAuthError("an error inside the CA")] * len(wishes)
        self.audit.counts.in_flight += 1
        try:
            results = await self._results(wishes, attested, request_id)
        except asyncio.CancelledError:
            results = [NotReady("the caller hung up, or the CA is stopping")] * len(wishes)
            raise
        except IstioAuthError as error:
            results = [error] * len(wishes)
        finally:
            self.audit.counts.in_flight -= 1
            self._put_on_record(wishes, results, attested, request_id)
        return results

    async def close(self) -> None:
        """Finish what was begun, and take no more."""
        await self._vetting.close()

    async def _results(
        self, wishes: Sequence[Wish], attested: Attested, request_id: str
    ) -> list[IssuedSVID | IstioAuthError]:
        vetted = _vet_all(wishes) if len(wishes) == 1 else await self._vetting.submit(wishes)
        orders = [
            csr if isinstance(csr, IstioAuthError) else self._order(wish, csr, attested, request_id)
            for wish, csr in zip(wishes, vetted, strict=True)
        ]
        good = [order for order in orders if isinstance(order, Order)]
        with _ours_to_mend():
            await self._settle(orders, attested)
            await self._keep_identities(attested, good)
            issued = iter(await self._issuer.issue_many(good))
            results = [_last_look(order, next(issued)) if isinstance(order, Order) else order for order in orders]
            await self._keep_end(attested, results)
        return results

    def _order(self, wish: Wish, csr: VettedCSR, attested: Attested, request_id: str) -> Order | IstioAuthError:
        if wish.workload_token:  # every proof that is sent must be verified, and nothing here can verify this one
            return NotAuthenticated("the token of a workload was passed on, which means nothing on this platform")
        try:
            wanted = SpiffeID.parse(wish.spiffe_id) if wish.spiffe_id else attested.spiffe_id
            grant = self._registry.grant(attested, wanted, self._clock.now())
        except IstioAuthError as error:
            return error
        return Order(grant, csr.public_key, wish.ttl, attested, request_id)

    async def _settle(self, orders: Sequence[Order | IstioAuthError], attested: Attested) -> None:
        if not attested.single_use:
            return
        if len(orders) != 1:
            raise NotAuthorized(f"a proof that is good once is worth one certificate, not {len(orders)}")
        (order,) = orders
        if isinstance(order, IstioAuthError):
            raise order
        if order.grant.spiffe_id != attested.spiffe_id:
            raise NotAuthorized("an agent joins with a CSR of its own, before it asks for others")
        self._issuer.check(order)
        await self._attestor.settle(attested, order.public_key)

    async def _keep_identities(self, attested: Attested, orders: Sequence[Order]) -> None:
        """Remember which identities an agent holds: when it is evicted, they can not renew themselves."""
        if (agent := agent_name(attested.spiffe_id)) is None:
            return
        identities = {order.grant.spiffe_id for order in orders} - {attested.spiffe_id}
        if unnoted := self._agents.unnoted(agent, identities):
            await asyncio.to_thread(self._agents.note_identities, agent, unnoted)

    async def _keep_end(self, attested: Attested, results: Sequence[IssuedSVID | IstioAuthError]) -> None:
        """Remember when an agent's own SVID ends: its window for recovery begins there."""
        if (agent := agent_name(attested.spiffe_id)) is None:
            return
        own = [
            result for result in results if isinstance(result, IssuedSVID) and result.spiffe_id == attested.spiffe_id
        ]
        if own:
            await asyncio.to_thread(self._agents.note_svid, agent, max(svid.not_after for svid in own))

    def _put_on_record(
        self,
        wishes: Sequence[Wish],
        results: Sequence[IssuedSVID | IstioAuthError],
        attested: Attested,
        request_id: str,
    ) -> None:
        for wish, result in zip(wishes, results, strict=True):
            if isinstance(result, IstioAuthError):
                wanted = wish.spiffe_id or str(attested.spiffe_id)
                self.audit.refused(result, request_id, caller=str(attested.spiffe_id), attested=attested, wanted=wanted)
            else:
                self.audit.issued(result, attested, request_id)


def _last_look(order: Order, result: IssuedSVID | IstioAuthError) -> IssuedSVID | IstioAuthError:
    """Check that the certificate has the identity and the key of its order: only its position ties the two together."""
    if isinstance(result, IstioAuthError):
        return result
    leaf = result.chain[0]
    if result.spiffe_id != order.grant.spiffe_id or str(result.spiffe_id).encode() not in leaf:
        return IstioAuthError(f"a certificate for {result.spiffe_id} was made in the place of {order.grant.spiffe_id}")
    if order.key_der not in leaf:
        return IstioAuthError(f"a certificate for {result.spiffe_id} was made with a key that is not the caller's")
    return result


@contextmanager
def _ours_to_mend() -> Iterator[None]:
    """Turn a file of ours that can not be used into NotReady: it is no fault of the caller's."""
    try:
        yield
    except ConfigurationError as error:
        raise NotReady(str(error)) from error


def _vet_all(wishes: Sequence[Wish]) -> list[VettedCSR | IstioAuthError]:
    """On a thread: each CSR vetted, with the error in the place of each that was refused."""
    return [_vet(wish) for wish in wishes]


def _vet(wish: Wish) -> VettedCSR | IstioAuthError:
    try:
        return vet_csr(wish.csr) if wish.pem else vet_csr_der(wish.csr)
    except IstioAuthError as error:
        return error
