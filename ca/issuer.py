"""Issuer: the only user of the signing key. It takes vetted types and returns recorded certificates.

    profile + Grant + public key -> built -> signed -> read back and checked -> on record -> released

All of that happens on a few threads (`ca.gathering`), because signing takes time (RSA, or a device) and so does the
disk. Each order succeeds or fails for itself. A caller who hangs up loses the answer and nothing else: what was
signed is on record.

Nobody is ever granted the CA's own names, whoever asks: that is checked here and not left to the registries.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache
from ipaddress import IPv4Address, IPv6Address, ip_address

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from ca.attest import Attested
from ca.authority.authority import ActiveIssuer, Authority
from ca.certificate.build import Leaf, LeafTemplate, Names, new_serial
from ca.certificate.check import CertificateCheck
from ca.gathering import Gathering
from ca.issuance_log import IssuanceLog, IssuanceRecord, Receipt
from ca.profile import IssuanceProfile, Validity
from ca.registry import Grant
from istio_auth.clock import Clock
from istio_auth.errors import IstioAuthError, NotAuthorized, NotReady, VerificationError
from istio_auth.keys import PublicKey, allowed_public_key, public_key_der, sign
from istio_auth.pem import read_der_certificate, write_der
from istio_auth.registration import check_dns_name
from istio_auth.spiffe_id import SpiffeID, TrustDomain
from istio_auth.verify import verify_chain

_log = logging.getLogger(__name__)
_MAX_THREADS = 8


@dataclass(frozen=True, slots=True)
class Order:
    """One certificate to make.

    Args:
        grant: what the registry allowed.
        public_key: the key, vetted.
        ttl: the lifetime asked for, or None.
        attested: who asked, and how that was proven; for the record.
        request_id: of the call; for the record.
        validity: when it begins and ends, if that was decided before (`IssuanceProfile.validity_spanning`); None leaves
            it to `ttl` and the profile.

    Attributes:
        key_der: the SubjectPublicKeyInfo of the key.
    """

    grant: Grant
    public_key: PublicKey
    ttl: timedelta | None
    attested: Attested
    request_id: str
    validity: Validity | None = None
    key_der: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "key_der", public_key_der(self.public_key))


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
        """Make sure that a grant has none of the CA's own names.

        Raises:
            NotAuthorized: it has one.
        """
        if grant.spiffe_id in self.spiffe_ids:
            raise NotAuthorized(f"{grant.spiffe_id} is the CA itself and is never granted")
        for name in grant.dns_names:
            if name.lower().rstrip(".") in self.dns_names:
                raise NotAuthorized(f"{name} is a name of the CA's own server and is never granted")


@dataclass(frozen=True, slots=True, eq=False)
class _Workshop:
    """Everything that stays the same for all certificates of one issuer."""

    active: ActiveIssuer
    validity: Validity
    template: LeafTemplate
    check: CertificateCheck
    chain: tuple[bytes, ...]

    @classmethod
    def of(cls, active: ActiveIssuer, profile: IssuanceProfile) -> _Workshop:
        foreign = not type(active.key).__module__.startswith("cryptography.")
        check = CertificateCheck(
            active.certificate, active.above, longest=profile.longest_validity, check_signature=foreign
        )
        chain = tuple(map(write_der, active.issuer.chain))
        return cls(active, active.validity, LeafTemplate(active.certificate), check, chain)


class Issuer:
    """Makes certificates. Lives on one event loop.

    Args:
        authority: whose issuer signs.
        profile: how long certificates live.
        log: where they go on record.
        clock: tells the time.
        reserved: names that are never granted.
        threads: how many threads sign; for a key in a slow device, more than there are processors.
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
        self._workshop: _Workshop | None = None
        self._gathering = Gathering(self._make, threads=threads or min(os.cpu_count() or 1, _MAX_THREADS), name="sign")

    def check(self, order: Order) -> None:
        """Check whether an order can be issued, before a single-use proof is used up for it.

        Raises:
            NotAuthorized, TTLRefused, MalformedError: it never can (see `issue`).
            NotReady: the validity that was decided before does not fit any more.
        """
        self._granted_names(order.grant)
        allowed_public_key(order.public_key)
        self._profile.lifetime(order.ttl, granted=order.grant.ttl)
        if order.validity is not None:
            self._profile.allowed(order.validity, self._clock.now(), within=self._authority.active.validity)

    async def issue(self, order: Order) -> IssuedSVID:
        """The certificate of one order.

        Raises:
            NotAuthorized: the grant names the CA itself, or another trust domain.
            TTLRefused: a longer life is asked for than the CA gives.
            MalformedError: a name in the grant can not stand in a certificate.
            NotReady: nothing can be signed or put on record now.
            Exhausted: too many orders are waiting.
        """
        (result,) = await self._gathering.submit(((order, None),))
        if isinstance(result, IstioAuthError):
            raise result
        return result

    async def issue_many(self, orders: Sequence[Order]) -> list[IssuedSVID | IstioAuthError]:
        """The certificates of a batch, in its order, with the error in the place of each that failed (see `issue`).

        Raises:
            NotReady: the CA is stopping.
            Exhausted: too many orders are waiting.
        """
        return list(await self._gathering.submit([(order, None) for order in orders])) if orders else []

    async def issue_serving(self, public_key: PublicKey, names: Sequence[str]) -> IssuedSVID:
        """The certificate of the CA's own server, which was verified against the CA's own bundle.

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
        (result,) = await self._gathering.submit(((order, own_names),))
        if isinstance(result, IstioAuthError):
            raise result
        try:
            verify_chain(result.certificates(), self._authority.bundle, self._clock.now())
        except VerificationError as error:
            raise NotReady(f"what this CA signs does not verify against its own bundle: {error}") from error
        return result

    def ready(self) -> str | None:
        """Why nothing can be signed now; None if it can. Does not block."""
        if self._gathering.closed:
            return "the CA is stopping"
        try:
            now, validity = self._clock.now(), self._authority.active.validity
        except NotReady as error:
            return str(error)
        if not validity.not_before <= now < validity.not_after:
            return "the chain of this CA is not valid now"
        if (reason := self._log.ready()) is not None:
            self._gathering.aside(self._log.probe)
        return reason

    async def close(self) -> None:
        """Finish what was ordered, and take no more."""
        await self._gathering.close()

    def _make(self, orders: Sequence[tuple[Order, Names | None]]) -> list[IssuedSVID | IstioAuthError]:
        """On a thread: make what was ordered, and put all of it on record at once.

        Each step is done for all orders before the next step: doing all steps for one order after the other takes half
        as long again, because of the processor's caches.
        """
        workshop, now = self._current_workshop(), self._clock.now()
        usual = cache(lambda lifetime: self._profile.validity(lifetime, now, within=workshop.validity))

        def validity(order: Order) -> Validity:
            if order.validity is not None:
                return self._profile.allowed(order.validity, now, within=workshop.validity)
            return usual(self._profile.lifetime(order.ttl, granted=order.grant.ttl))

        leaves = [self._leaf(order, own_names, validity) for order, own_names in orders]
        signed = [_signed(workshop, leaf) for leaf in leaves]
        made = [(leaf, _checked(workshop, der, leaf)) for leaf, der in zip(leaves, signed, strict=True)]
        records = [
            IssuanceRecord(
                now, order.request_id, leaf.serial, der, order.grant, order.attested, leaf.validity.not_after
            )
            for (order, _), (leaf, der) in zip(orders, made, strict=True)
            if isinstance(leaf, Leaf) and isinstance(der, bytes)
        ]
        return list(_released(workshop, made, self._recorded(records)))

    def _leaf(
        self, order: Order, own_names: Names | None, validity: Callable[[Order], Validity]
    ) -> Leaf | IstioAuthError:
        """What the certificate of an order shall say."""
        try:
            names = own_names or self._granted_names(order.grant)
            key = allowed_public_key(order.public_key)
            return Leaf(names, new_serial(), validity(order), order.key_der, isinstance(key, RSAPublicKey))
        except IstioAuthError as error:
            return error

    def _recorded(self, records: Sequence[IssuanceRecord]) -> Sequence[Receipt | IstioAuthError]:
        try:
            return self._log.append_many(records) if records else []
        except IstioAuthError as error:
            return [NotReady(f"serial {record.serial:x} was signed and dropped: {error}") for record in records]

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
        if workshop is None or workshop.active is not active:
            workshop = self._workshop = _Workshop.of(active, self._profile)
        return workshop


def _signed(workshop: _Workshop, leaf: Leaf | IstioAuthError) -> bytes | IstioAuthError:
    if isinstance(leaf, IstioAuthError):
        return leaf
    try:
        to_be_signed = workshop.template.to_be_signed(leaf)
    except Exception as error:  # noqa: BLE001 - one order that trips over a fault of ours must not fail the others
        return _caused(IstioAuthError(f"a certificate could not be built ({type(error).__name__})"), error)
    try:
        signature = sign(workshop.active.key, to_be_signed)
    except Exception as error:  # noqa: BLE001 - a device or a service has errors of its own
        return _caused(NotReady(f"the key of the authority did not sign ({type(error).__name__})"), error)
    return workshop.template.signed(to_be_signed, signature)


def _checked(
    workshop: _Workshop, certificate: bytes | IstioAuthError, leaf: Leaf | IstioAuthError
) -> bytes | IstioAuthError:
    if isinstance(leaf, IstioAuthError) or isinstance(certificate, IstioAuthError):
        return certificate
    try:
        workshop.check.check(certificate, leaf)
    except IstioAuthError as error:
        _log.critical("a certificate was built wrong and dropped: %s", error)
        return error
    return certificate


def _released(
    workshop: _Workshop,
    made: Sequence[tuple[Leaf | IstioAuthError, bytes | IstioAuthError]],
    recorded: Sequence[Receipt | IstioAuthError],
) -> Iterator[IssuedSVID | IstioAuthError]:
    """What may leave: nothing that is not on record."""
    receipts = iter(recorded)
    for leaf, der in made:
        if isinstance(leaf, IstioAuthError):
            yield leaf
        elif isinstance(der, IstioAuthError):
            yield der
        elif isinstance(receipt := next(receipts), IstioAuthError):
            yield receipt
        else:
            ends = leaf.validity
            chain = (der, *workshop.chain)
            yield IssuedSVID(
                chain, leaf.serial, leaf.names.spiffe_id, ends.not_before, ends.not_after, receipt.sequence
            )


def _caused(error: IstioAuthError, cause: Exception) -> IstioAuthError:
    error.__cause__ = cause
    return error


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
