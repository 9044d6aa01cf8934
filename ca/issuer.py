"""Issuer: the one door to the signing key. Vetted types in, recorded certificates out.

    profile + Grant + public key -> built -> signed -> read back and checked -> on record -> released

Every step of that happens on a small pool of threads, because signing takes time (RSA, or a device) and so does the
disk. A trip to a thread and a wait for the disk cost more than a P-256 signature, so orders share them: a batch makes
one trip, and single orders that come while the threads are busy are gathered for the next one. Each order succeeds or
fails for itself. A caller who hangs up loses the answer and nothing else: what was signed is on record.

Nobody is ever granted the CA's own names, whoever asks: that is checked here and not left to the registries.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address
from itertools import islice

from cryptography import x509

from ca.attest import Attested
from ca.authority import ActiveIssuer, Authority
from ca.certificate import LeafTemplate, Names, new_serial
from ca.certificate_check import CertificateCheck, Meant
from ca.issuance_log import IssuanceLog, IssuanceRecord, Receipt
from ca.profile import IssuanceProfile, Validity
from ca.registry import Grant
from istio_auth.clock import Clock
from istio_auth.errors import Exhausted, IstioAuthError, NotAuthorized, NotReady, VerificationError
from istio_auth.keys import PublicKey, allowed_public_key, sign
from istio_auth.pem import read_der_certificate, write_der
from istio_auth.registration import check_dns_name
from istio_auth.spiffe_id import SpiffeID, TrustDomain
from istio_auth.verify import verify_chain

_MAX_WAITING = 4096  # orders; more would wait longer than their callers do
_MAX_TRIP = 64  # orders that share one trip to a thread
_MAX_THREADS = 8
_RETRY_AFTER = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class Order:
    """One certificate to make.

    Args:
        grant: what the registry allowed.
        public_key: the key, vetted.
        ttl: the lifetime asked for, or None.
        attested: who asked, and how that was proven; for the record.
        request_id: of the call; for the record.
    """

    grant: Grant
    public_key: PublicKey
    ttl: timedelta | None
    attested: Attested
    request_id: str


@dataclass(frozen=True, slots=True)
class IssuedSVID:
    """A certificate that is on record and may leave.

    Args:
        chain: the leaf and the certificates between it and the root, in DER; without the root.
        serial: the leaf's serial number.
        spiffe_id: the identity.
        not_before: when it begins.
        not_after: when it ends; nothing in its chain ends earlier.
        sequence: its number in the issuance log, or None.
    """

    chain: tuple[bytes, ...]
    serial: int
    spiffe_id: SpiffeID
    not_before: datetime
    not_after: datetime
    sequence: int | None = None

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of the leaf, in hex."""
        return hashlib.sha256(self.chain[0]).hexdigest()

    def certificates(self) -> tuple[x509.Certificate, ...]:
        """The chain as objects."""
        return tuple(map(read_der_certificate, self.chain))


@dataclass(frozen=True, slots=True)
class ReservedNames:
    """The names of the CA itself, which no grant may carry.

    Args:
        spiffe_ids: its SPIFFE IDs.
        dns_names: the names its servers are known by, in lower case; addresses as text.
    """

    spiffe_ids: frozenset[SpiffeID]
    dns_names: frozenset[str] = frozenset()

    @classmethod
    def of(cls, trust_domain: TrustDomain, serving_names: Sequence[str] = ()) -> ReservedNames:
        """The names of the CA of a trust domain whose servers have these names."""
        own = (trust_domain.id, SpiffeID.for_ca(trust_domain))
        return cls(frozenset(own), frozenset(name.lower().rstrip(".") for name in serving_names))

    def check(self, grant: Grant) -> None:
        """Make sure that a grant names nobody of us.

        Raises:
            NotAuthorized: it does.
        """
        if grant.spiffe_id in self.spiffe_ids:
            raise NotAuthorized(f"{grant.spiffe_id} is the CA itself and is never granted")
        for name in grant.dns_names:
            if name.lower().rstrip(".") in self.dns_names:
                raise NotAuthorized(f"{name} is a name of the CA's own server and is never granted")


@dataclass(frozen=True, slots=True, eq=False)
class _Workshop:
    """What is constant per issuer."""

    active: ActiveIssuer
    validity: Validity
    template: LeafTemplate
    check: CertificateCheck
    chain: tuple[bytes, ...]

    @classmethod
    def of(cls, active: ActiveIssuer, profile: IssuanceProfile) -> _Workshop:
        foreign = not type(active.key).__module__.startswith("cryptography.")
        longest = profile.max_ttl + profile.backdate + timedelta(seconds=1)
        check = CertificateCheck(active.certificate, active.above, longest=longest, check_signature=foreign)
        chain = tuple(map(write_der, active.issuer.chain))
        return cls(active, active.validity, LeafTemplate(active.certificate), check, chain)


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    """Orders of one caller, and where the answers go; with names if it is the CA's own server that asks."""

    orders: Sequence[Order]
    answers: asyncio.Future[list[IssuedSVID | IstioAuthError]]
    own_names: Names | None = None


class Issuer:
    """Makes certificates. Lives on one event loop.

    Args:
        authority: whose issuer signs.
        profile: how long certificates live.
        log: where they go on record.
        clock: tells the time.
        reserved: names that are never granted.
        threads: how many threads sign; a key in a slow device wants more than there are processors.
    """

    def __init__(
        self,
        authority: Authority,
        profile: IssuanceProfile,
        log: IssuanceLog,
        clock: Clock,
        reserved: ReservedNames,
        *,
        threads: int | None = None,
    ) -> None:
        self._authority = authority
        self._profile = profile
        self._log = log
        self._clock = clock
        self._reserved = reserved
        self._threads = threads or min(os.cpu_count() or 1, _MAX_THREADS)
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="sign")
        self._waiting: deque[_Job] = deque()
        self._orders_waiting = 0
        self._trips: set[asyncio.Future[list[list[IssuedSVID | IstioAuthError]]]] = set()
        self._probe: asyncio.Future[None] | None = None
        self._closed = False
        self._workshop = _Workshop.of(authority.active, profile)

    async def issue(self, order: Order) -> IssuedSVID:
        """The certificate of one order.

        Raises:
            NotAuthorized: the grant names the CA itself, or another trust domain.
            TTLRefused: a longer life is asked for than the CA gives.
            MalformedError: a name in the grant can not stand in a certificate.
            NotReady: nothing can be signed or put on record now.
            Exhausted: too many orders are waiting.
        """
        (result,) = await self._submit((order,))
        if isinstance(result, IstioAuthError):
            raise result
        return result

    async def issue_many(self, orders: Sequence[Order]) -> list[IssuedSVID | IstioAuthError]:
        """The certificates of a batch, in its order, with the error in the place of each that failed (see `issue`).

        Raises:
            NotReady: the CA is stopping.
            Exhausted: too many orders are waiting.
        """
        return await self._submit(tuple(orders)) if orders else []

    async def issue_serving(self, public_key: PublicKey, names: Sequence[str]) -> IssuedSVID:
        """The certificate of the CA's own server, proven to verify against the CA's own bundle.

        Args:
            public_key: the server's key.
            names: the DNS names and IP addresses clients know it by.

        Raises:
            MalformedError: a name can not stand in a certificate.
            NotReady: nothing can be signed now, or nobody would accept it.
        """
        ca = SpiffeID.for_ca(self._authority.trust_domain)
        own_names = _serving_names(ca, names)
        order = Order(Grant(ca, dns_names=own_names.dns_names), public_key, None, Attested(ca, "self"), "serving")
        (result,) = await self._submit((order,), own_names=own_names)
        if isinstance(result, IstioAuthError):
            raise result
        try:
            verify_chain(result.certificates(), self._authority.bundle, self._clock.now())
        except VerificationError as error:
            raise NotReady(f"what this CA signs does not verify against its own bundle: {error}") from error
        return result

    def ready(self) -> str | None:
        """Why nothing can be signed now; None if it can. Does not block."""
        if self._closed:
            return "the CA is stopping"
        now, validity = self._clock.now(), self._authority.active.validity
        if not validity.not_before <= now < validity.not_after:
            return "the chain of this CA is not valid now"
        reason = self._log.ready()
        if reason is not None and (self._probe is None or self._probe.done()):
            self._probe = asyncio.get_running_loop().run_in_executor(self._pool, self._log.probe)
        return reason

    async def close(self) -> None:
        """Finish what was ordered, and take no more."""
        self._closed = True
        while self._waiting or self._trips:
            self._send_off()
            await asyncio.wait(self._trips)
        self._pool.shutdown(wait=True)

    async def _submit(
        self, orders: Sequence[Order], *, own_names: Names | None = None
    ) -> list[IssuedSVID | IstioAuthError]:
        if self._closed:
            raise NotReady("the CA is stopping")
        if self._orders_waiting + len(orders) > _MAX_WAITING:
            raise Exhausted(f"{self._orders_waiting} orders wait to be signed", retry_after=_RETRY_AFTER)
        loop = asyncio.get_running_loop()
        job = _Job(orders, loop.create_future(), own_names)
        self._orders_waiting += len(orders)
        self._waiting.append(job)
        loop.call_soon(self._send_off)  # not now: others may come before the loop's next turn and share the trip
        return await job.answers

    def _send_off(self) -> None:
        """Start trips, as long as there are jobs and idle threads."""
        while self._waiting and len(self._trips) < self._threads:
            jobs: list[_Job] = []
            orders = 0
            while self._waiting and orders < _MAX_TRIP:
                job = self._waiting.popleft()
                self._orders_waiting -= len(job.orders)
                if not job.answers.cancelled():
                    jobs.append(job)
                    orders += len(job.orders)
            if jobs:
                trip = asyncio.get_running_loop().run_in_executor(self._pool, self._make_all, jobs)
                self._trips.add(trip)
                trip.add_done_callback(partial(self._returned, jobs))

    def _returned(self, jobs: Sequence[_Job], trip: asyncio.Future[list[list[IssuedSVID | IstioAuthError]]]) -> None:
        self._trips.discard(trip)
        for number, job in enumerate(jobs):
            if job.answers.done():
                continue  # the caller hung up
            if (error := trip.exception()) is not None:
                job.answers.set_exception(error)
            else:
                job.answers.set_result(trip.result()[number])
        self._send_off()

    def _make_all(self, jobs: Sequence[_Job]) -> list[list[IssuedSVID | IstioAuthError]]:
        """On a thread: make what the jobs order, put all of it on record at once, and sort the answers by job."""
        workshop, now = self._current_workshop(), self._clock.now()
        made = [self._make(workshop, order, job.own_names, now) for job in jobs for order in job.orders]
        records = [result[1] for result in made if not isinstance(result, IstioAuthError)]
        answers = iter(_released(made, self._record(records)))
        return [list(islice(answers, len(job.orders))) for job in jobs]

    def _make(
        self, workshop: _Workshop, order: Order, own_names: Names | None, now: datetime
    ) -> tuple[IssuedSVID, IssuanceRecord] | IstioAuthError:
        try:
            names = own_names or self._granted_names(order.grant)
            lifetime = self._profile.lifetime(order.ttl, granted=order.grant.ttl)
            validity = self._profile.validity(lifetime, now, within=workshop.validity)
            meant = Meant(names, allowed_public_key(order.public_key), new_serial(), validity)
            der = self._sign(workshop, meant)
            workshop.check.check(der, meant)
        except IstioAuthError as error:
            return error
        issued = IssuedSVID(
            (der, *workshop.chain), meant.serial, names.spiffe_id, validity.not_before, validity.not_after
        )
        record = IssuanceRecord(
            now, order.request_id, meant.serial, der, order.grant, order.attested, validity.not_after
        )
        return issued, record

    @staticmethod
    def _sign(workshop: _Workshop, meant: Meant) -> bytes:
        to_be_signed = workshop.template.to_be_signed(
            meant.names, meant.public_key, serial=meant.serial, validity=meant.validity
        )
        try:
            signature = sign(workshop.active.key, to_be_signed)
        except Exception as error:  # a device or a service has errors of its own
            raise NotReady(f"the key of the authority did not sign ({type(error).__name__})") from error
        return workshop.template.signed(to_be_signed, signature)

    def _record(self, records: Sequence[IssuanceRecord]) -> list[Receipt] | IstioAuthError:
        try:
            return self._log.append_many(records) if records else []
        except IstioAuthError as error:
            return error

    def _granted_names(self, grant: Grant) -> Names:
        self._reserved.check(grant)
        if grant.spiffe_id.trust_domain != self._authority.trust_domain:
            raise NotAuthorized(f"{grant.spiffe_id} is not in the trust domain of this CA")
        if not grant.spiffe_id.path:
            raise NotAuthorized(f"{grant.spiffe_id} names a trust domain, not a workload")
        for name in grant.dns_names:
            check_dns_name(name)
        return Names(grant.spiffe_id, grant.dns_names)

    def _current_workshop(self) -> _Workshop:
        active, workshop = self._authority.active, self._workshop
        if workshop.active is not active:
            workshop = self._workshop = _Workshop.of(active, self._profile)
        return workshop


def _released(
    made: Sequence[tuple[IssuedSVID, IssuanceRecord] | IstioAuthError], receipts: list[Receipt] | IstioAuthError
) -> Iterator[IssuedSVID | IstioAuthError]:
    """What may leave: nothing without its receipt."""
    numbers = iter(receipts if isinstance(receipts, list) else ())
    for result in made:
        if isinstance(result, IstioAuthError):
            yield result
        elif isinstance(receipts, IstioAuthError):
            yield NotReady(f"serial {result[0].serial:x} was signed and dropped: {receipts}")
        else:
            yield replace(result[0], sequence=next(numbers).sequence)


def _serving_names(ca: SpiffeID, names: Sequence[str]) -> Names:
    dns_names: list[str] = []
    addresses: list[IPv4Address | IPv6Address] = []
    for name in names:
        try:
            addresses.append(ip_address(name))
        except ValueError:
            check_dns_name(name)
            dns_names.append(name)
    return Names(ca, tuple(dict.fromkeys(dns_names)), tuple(dict.fromkeys(addresses)))
