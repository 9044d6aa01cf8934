"""The issuer: what was granted, signed, checked and on record; nothing else, and never the CA's own names."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from ca.attest import Attested
from ca.authority.authority import Authority, open_authority
from ca.authority.plugged import Rollout, open_shared_authority
from ca.authority.state import AuthorityState, IssuerState, KeyReference
from ca.certificate.build import LeafTemplate
from ca.certificate.check import WrongCertificate
from ca.issuer import IssuedSVID, Issuer, Order, ReservedNames
from ca.profile import IssuanceProfile, TTLRefused, Validity
from ca.registry import Grant
from istio_auth.errors import IstioAuthError, KeyRejected, MalformedError, NotAuthorized, NotReady
from istio_auth.keys import PublicKey
from istio_auth.spiffe_id import SpiffeID, TrustDomain
from istio_auth.verify import verify_chain
from tests.fakes.authority import FakeAuthority
from tests.fakes.authority_store import MemoryAuthorityStore
from tests.fakes.clock import FakeClock
from tests.fakes.external_key import ExternalKey
from tests.fakes.issuance_log import MemoryIssuanceLog
from tests.fakes.issuer_source import MemoryIssuerSource

LOCAL = TrustDomain("cluster.local")
WEB = SpiffeID.for_service_account(LOCAL, "default", "web")
AGENT = SpiffeID.for_agent(LOCAL, "node-1")
KEY = ec.generate_private_key(ec.SECP256R1())
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
ATTESTED = Attested(AGENT, "certificate", details={"serial": "5f"})
RESERVED = ReservedNames.of(LOCAL, ["istiod.istio-system.svc", "CA.Example.", "10.0.0.1"])
WEB_ORDER = Order(Grant(WEB), KEY.public_key(), None, ATTESTED, "request-1")


def order(public_key: PublicKey | None = None, **grant: object) -> Order:
    granted = Grant(**({"spiffe_id": WEB} | grant))  # type: ignore[arg-type]  # by name
    return replace(WEB_ORDER, grant=granted, public_key=public_key or KEY.public_key())


@pytest.fixture
def store() -> MemoryAuthorityStore:
    return MemoryAuthorityStore()


@pytest.fixture
def authority_(store: MemoryAuthorityStore, clock: FakeClock) -> Authority:
    return open_authority(store, LOCAL, clock)


@pytest.fixture
def log() -> MemoryIssuanceLog:
    return MemoryIssuanceLog()


@asynccontextmanager
async def issuer_of(
    authority: Authority, log: MemoryIssuanceLog, clock: FakeClock, *, threads: int = 2
) -> AsyncIterator[Issuer]:
    issuer = Issuer(authority, IssuanceProfile(), log, clock, RESERVED, threads=threads)
    yield issuer
    await issuer.close()


@pytest.fixture
async def issuer(authority_: Authority, log: MemoryIssuanceLog, clock: FakeClock) -> AsyncIterator[Issuer]:
    async with issuer_of(authority_, log, clock) as issuer:
        yield issuer


async def test_what_is_issued_proves_what_was_granted(
    issuer: Issuer, authority_: Authority, clock: FakeClock, log: MemoryIssuanceLog
) -> None:
    issued = await issuer.issue(order(dns_names=("web.default.svc",)))
    (leaf,) = issued.certificates()
    assert verify_chain((leaf,), authority_.bundle, clock.now()) == WEB == issued.spiffe_id
    assert leaf.public_key() == KEY.public_key()
    assert leaf.serial_number == issued.serial
    assert (issued.not_before, issued.not_after) == (clock.now() - timedelta(minutes=2), clock.now() + DAY)
    assert (leaf.not_valid_before_utc, leaf.not_valid_after_utc) == (issued.not_before, issued.not_after)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["web.default.svc"]
    assert issued.fingerprint == hashlib.sha256(issued.chain[0]).hexdigest()
    assert issued.sequence == 1
    (entry,) = log.records
    assert (entry.certificate, entry.serial, entry.request_id) == (issued.chain[0], issued.serial, "request-1")
    assert (entry.grant, entry.attested, entry.not_after) == (
        order(dns_names=("web.default.svc",)).grant,
        ATTESTED,
        issued.not_after,
    )


async def test_a_leaf_of_an_intermediate_brings_what_leads_to_the_root(
    log: MemoryIssuanceLog, clock: FakeClock
) -> None:
    root = FakeAuthority(now=clock.now(), lifetime=3650 * DAY)
    middle = FakeAuthority(parent=root, now=clock.now(), lifetime=5 * HOUR)
    below = FakeAuthority(parent=middle, now=clock.now(), lifetime=100 * HOUR)
    state = IssuerState(below.certificate, root.certificate, (middle.certificate,), key=below.key)
    store = MemoryAuthorityStore(AuthorityState(LOCAL, state))
    async with issuer_of(open_authority(store, LOCAL, clock), log, clock) as issuer:
        issued = await issuer.issue(WEB_ORDER)
    assert issued.certificates()[1:] == (below.certificate, middle.certificate)
    assert verify_chain(issued.certificates(), root.bundle(), clock.now()) == WEB
    assert issued.not_after == middle.certificate.not_valid_after_utc  # the earliest end in the chain


@pytest.mark.parametrize(
    "key",
    [ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65537, 2048)],
    ids=["P-384", "RSA"],
)
async def test_every_allowed_key_gets_its_certificate(issuer: Issuer, key: rsa.RSAPrivateKey) -> None:
    (leaf,) = (await issuer.issue(order(key.public_key()))).certificates()
    assert leaf.public_key() == key.public_key()


async def test_a_key_that_nobody_vetted_is_refused_here_at_last(issuer: Issuer, log: MemoryIssuanceLog) -> None:
    bits = 1024
    with pytest.raises(KeyRejected):
        await issuer.issue(order(rsa.generate_private_key(65537, bits).public_key()))
    assert log.records == []
    await issuer.issue(WEB_ORDER)


@pytest.mark.parametrize(
    ("ttl", "granted", "given"),
    [(None, None, DAY), (HOUR, None, HOUR), (None, HOUR, HOUR), (2 * HOUR, HOUR, HOUR), (-HOUR, None, DAY)],
)
async def test_the_lifetime_is_what_profile_grant_and_caller_agree_on(
    issuer: Issuer, clock: FakeClock, ttl: timedelta | None, granted: timedelta | None, given: timedelta
) -> None:
    issued = await issuer.issue(replace(order(ttl=granted), ttl=ttl))
    assert issued.not_after - clock.now() == given


async def test_a_validity_that_was_settled_before_is_what_the_certificate_has(issuer: Issuer, clock: FakeClock) -> None:
    settled = Validity(clock.now() + timedelta(minutes=3), clock.now() + 5 * HOUR)
    issuer.check(replace(WEB_ORDER, validity=settled))
    usual, issued = await issuer.issue_many([WEB_ORDER, replace(WEB_ORDER, validity=settled)])
    assert isinstance(issued, IssuedSVID)
    assert isinstance(usual, IssuedSVID)
    assert Validity(issued.not_before, issued.not_after) == settled
    (leaf,) = issued.certificates()
    assert (leaf.not_valid_before_utc, leaf.not_valid_after_utc) == (settled.not_before, settled.not_after)
    assert usual.not_after == clock.now() + DAY


async def test_a_settled_validity_that_does_not_hold_fails_its_own_order_alone(
    issuer: Issuer, clock: FakeClock
) -> None:
    long = replace(WEB_ORDER, validity=Validity(clock.now(), clock.now() + 91 * DAY))
    over = replace(WEB_ORDER, validity=Validity(clock.now() - 2 * HOUR, clock.now() - HOUR))
    refused, late, issued = await issuer.issue_many([long, over, WEB_ORDER])
    assert isinstance(refused, TTLRefused)
    assert isinstance(late, NotReady)
    assert isinstance(issued, IssuedSVID)
    for wrong, error in ((long, TTLRefused), (over, NotReady)):
        with pytest.raises(error):
            issuer.check(wrong)


async def test_too_long_a_lifetime_is_refused(issuer: Issuer) -> None:
    with pytest.raises(TTLRefused):
        await issuer.issue(replace(WEB_ORDER, ttl=91 * DAY))
    await issuer.issue(replace(WEB_ORDER, ttl=90 * DAY))


@pytest.mark.parametrize(
    "grant",
    [
        Grant(SpiffeID.for_ca(LOCAL)),
        Grant(LOCAL.id),
        Grant(WEB, dns_names=("web", "istiod.istio-system.svc")),
        Grant(WEB, dns_names=("ca.example",)),
        Grant(WEB, dns_names=("10.0.0.1",)),
    ],
    ids=["the CA", "the trust domain", "a server name", "in other letters", "an address"],
)
async def test_nobody_is_granted_the_names_of_the_ca_whoever_asks(
    issuer: Issuer, log: MemoryIssuanceLog, grant: Grant
) -> None:
    with pytest.raises(NotAuthorized):
        await issuer.issue(replace(WEB_ORDER, grant=grant))
    (result,) = await issuer.issue_many([replace(WEB_ORDER, grant=grant)])
    assert isinstance(result, NotAuthorized)
    assert log.records == []
    await issuer.issue(order(dns_names=("web",)))


@pytest.mark.parametrize("name", ["CA.Example", "ca.example.", "Istiod.istio-system.svc"])
def test_reserved_names_are_reserved_in_every_spelling(name: str) -> None:
    with pytest.raises(NotAuthorized):
        RESERVED.check(Grant(WEB, dns_names=(name,)))
    RESERVED.check(Grant(WEB, dns_names=(f"x{name}",)))


async def test_an_identity_of_another_trust_domain_is_refused(issuer: Issuer) -> None:
    with pytest.raises(NotAuthorized):
        await issuer.issue(order(spiffe_id=SpiffeID.parse("spiffe://foreign.test/ns/default/sa/web")))


@pytest.mark.parametrize("name", ["", "a b", "*.example", "Web", "web.", "a" * 64, "w\u00e9b", "web\n"])
async def test_a_name_that_can_not_stand_in_a_certificate_is_refused(issuer: Issuer, name: str) -> None:
    with pytest.raises(MalformedError):
        await issuer.issue(order(dns_names=(name,)))


async def test_in_a_batch_each_order_succeeds_or_fails_for_itself(issuer: Issuer, log: MemoryIssuanceLog) -> None:
    other = SpiffeID.for_service_account(LOCAL, "default", "other")
    results = await issuer.issue_many(
        [
            WEB_ORDER,
            order(spiffe_id=SpiffeID.for_ca(LOCAL)),
            replace(WEB_ORDER, ttl=91 * DAY),
            order(spiffe_id=other),
        ]
    )
    assert [type(result) for result in results] == [IssuedSVID, NotAuthorized, TTLRefused, IssuedSVID]
    issued = [result for result in results if isinstance(result, IssuedSVID)]
    assert [result.spiffe_id for result in issued] == [WEB, other]
    assert [entry.certificate for entry in log.records] == [result.chain[0] for result in issued]
    assert [result.sequence for result in issued] == [1, 2]
    assert log.appends == [2]
    assert await issuer.issue_many([]) == []


async def test_serial_numbers_never_repeat(issuer: Issuer) -> None:
    results = await issuer.issue_many([WEB_ORDER] * 200)
    assert len({result.serial for result in results if isinstance(result, IssuedSVID)}) == 200


async def test_nothing_leaves_before_it_is_on_record(issuer: Issuer, log: MemoryIssuanceLog) -> None:
    log.gate.clear()
    task = asyncio.create_task(issuer.issue(WEB_ORDER))
    assert await asyncio.to_thread(log.arrived.acquire, timeout=30)
    assert not task.done()
    assert log.records == []
    log.gate.set()
    issued = await task
    assert [entry.serial for entry in log.records] == [issued.serial]


async def test_when_nothing_can_be_recorded_nothing_leaves_and_readiness_says_so(
    issuer: Issuer, log: MemoryIssuanceLog
) -> None:
    assert issuer.ready() is None
    log.broken = True
    for result in await issuer.issue_many([WEB_ORDER, WEB_ORDER]):
        assert isinstance(result, NotReady)
    with pytest.raises(NotReady):
        await issuer.issue(WEB_ORDER)
    assert issuer.ready() is not None
    log.broken = False
    async with asyncio.timeout(30):
        while issuer.ready() is not None:  # noqa: ASYNC110  # asking is what makes it look for room again
            await asyncio.sleep(0.001)
    await issuer.issue(WEB_ORDER)


async def test_what_was_signed_for_a_caller_who_hung_up_is_on_record(issuer: Issuer, log: MemoryIssuanceLog) -> None:
    log.gate.clear()
    task = asyncio.create_task(issuer.issue(WEB_ORDER))
    assert await asyncio.to_thread(log.arrived.acquire, timeout=30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    log.gate.set()
    await issuer.close()
    assert len(log.records) == 1


async def test_single_orders_share_their_waits_for_the_disk(
    authority_: Authority, log: MemoryIssuanceLog, clock: FakeClock
) -> None:
    async with issuer_of(authority_, log, clock, threads=1) as issuer:
        log.gate.clear()
        tasks = [asyncio.create_task(issuer.issue(WEB_ORDER))]
        assert await asyncio.to_thread(log.arrived.acquire, timeout=30)
        tasks += [asyncio.create_task(issuer.issue(WEB_ORDER)) for _ in range(30)]
        await asyncio.sleep(0)
        log.gate.set()
        await asyncio.gather(*tasks)
    assert log.appends == [1, 30]


def external(key: ExternalKey, clock: FakeClock) -> Authority:
    """An authority whose key is in a device."""
    root = FakeAuthority(now=clock.now(), key=key)
    state = IssuerState(root.certificate, root.certificate, key=KeyReference("a device"))
    store = MemoryAuthorityStore(AuthorityState(LOCAL, state))
    stored = store.load()
    assert stored is not None
    return Authority(store, stored, key=key)


async def test_a_key_outside_the_process_signs_as_well(log: MemoryIssuanceLog, clock: FakeClock) -> None:
    key = ExternalKey()
    authority = external(key, clock)
    before = key.signatures
    async with issuer_of(authority, log, clock) as issuer:
        issued = await issuer.issue(WEB_ORDER)
    assert verify_chain(issued.certificates(), authority.bundle, clock.now()) == WEB
    assert key.signatures == before + 1


async def test_without_the_key_of_its_issuer_nothing_is_signed_until_it_is_known(
    log: MemoryIssuanceLog, clock: FakeClock
) -> None:
    plugged, source = FakeAuthority(now=clock.now()), MemoryIssuerSource()
    issuer_state = IssuerState(plugged.certificate, plugged.certificate, key=KeyReference("a plugged-in CA in memory"))
    store = MemoryAuthorityStore(AuthorityState(LOCAL, issuer_state))
    rollout = Rollout(lambda _: True)
    authority = open_shared_authority(source, store, LOCAL, clock, rollout=rollout, longest_ttl=timedelta(days=1))
    async with issuer_of(authority, log, clock) as issuer:
        assert "key" in (issuer.ready() or "")
        with pytest.raises(NotReady):
            await issuer.issue(WEB_ORDER)
        assert log.records == []
        source.show(plugged)
        authority.follow(clock.now())
        assert issuer.ready() is None
        issued = await issuer.issue(WEB_ORDER)
    assert verify_chain(issued.certificates(), authority.bundle, clock.now()) == WEB


@pytest.mark.parametrize(
    "twist",
    [
        lambda signature: signature[:-1] + bytes([signature[-1] ^ 1]),
        lambda _: b"",
        lambda _: b"\0" * 70,
    ],
    ids=["one bit", "nothing", "zeros"],
)
async def test_a_wrong_signature_from_outside_never_leaves(
    log: MemoryIssuanceLog, clock: FakeClock, twist: Callable[[bytes], bytes]
) -> None:
    key = ExternalKey()
    async with issuer_of(external(key, clock), log, clock) as issuer:
        key.twist = twist
        with pytest.raises(WrongCertificate):
            await issuer.issue(WEB_ORDER)
        assert log.records == []
        key.twist = lambda signature: signature
        await issuer.issue(WEB_ORDER)


async def test_a_device_that_is_away_means_not_ready(log: MemoryIssuanceLog, clock: FakeClock) -> None:
    def away(_: bytes) -> bytes:
        raise RuntimeError("CKR_DEVICE_REMOVED")

    key = ExternalKey()
    async with issuer_of(external(key, clock), log, clock) as issuer:
        key.twist = away
        with pytest.raises(NotReady):
            await issuer.issue(WEB_ORDER)
        key.twist = lambda signature: signature
        await issuer.issue(WEB_ORDER)


async def test_a_certificate_that_is_built_wrong_is_dropped_and_its_neighbours_are_not(
    issuer: Issuer, log: MemoryIssuanceLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = LeafTemplate.to_be_signed
    builds = iter(range(100))

    def wrong(self: LeafTemplate, leaf: object) -> bytes:
        built = original(self, leaf)  # type: ignore[arg-type]  # what the issuer gave
        return built.replace(b"/sa/web", b"/sa/wab") if next(builds) == 1 else built

    monkeypatch.setattr(LeafTemplate, "to_be_signed", wrong)
    results = await issuer.issue_many([WEB_ORDER] * 3)
    assert [type(result) for result in results] == [IssuedSVID, WrongCertificate, IssuedSVID]
    assert len(log.records) == 2


async def test_an_order_that_trips_over_a_fault_of_ours_does_not_fail_its_neighbours(
    issuer: Issuer, log: MemoryIssuanceLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = LeafTemplate.to_be_signed
    builds = iter(range(100))

    def broken(self: LeafTemplate, leaf: object) -> bytes:
        if next(builds) == 1:
            raise AttributeError("a fault of ours")
        return original(self, leaf)  # type: ignore[arg-type]  # what the issuer gave

    monkeypatch.setattr(LeafTemplate, "to_be_signed", broken)
    results = await issuer.issue_many([WEB_ORDER] * 3)
    assert [type(result) for result in results] == [IssuedSVID, IstioAuthError, IssuedSVID]
    assert len(log.records) == 2


async def test_after_a_renewal_certificates_live_by_the_new_root(
    issuer: Issuer, authority_: Authority, clock: FakeClock
) -> None:
    clock.time = authority_.not_after - HOUR
    assert (await issuer.issue(WEB_ORDER)).not_after == authority_.not_after
    authority_.renew_if_due(clock.now())
    issued = await issuer.issue(WEB_ORDER)
    assert issued.not_after == clock.now() + DAY
    assert verify_chain(issued.certificates(), authority_.bundle, clock.now()) == WEB


@pytest.mark.parametrize("away", [3651 * DAY, -2 * HOUR], ids=["after the end", "clock set back"])
async def test_outside_the_life_of_the_authority_nothing_is_signed(
    issuer: Issuer, clock: FakeClock, log: MemoryIssuanceLog, away: timedelta
) -> None:
    clock.advance(away)
    with pytest.raises(NotReady):
        await issuer.issue(WEB_ORDER)
    assert issuer.ready() is not None
    assert log.records == []
    clock.advance(-away)
    await issuer.issue(WEB_ORDER)
    assert issuer.ready() is None


async def test_the_ca_gives_its_own_server_its_names(
    issuer: Issuer, authority_: Authority, clock: FakeClock, log: MemoryIssuanceLog
) -> None:
    names = ["istiod.istio-system.svc", "10.0.0.1", "::1", "localhost", "localhost"]
    issued = await issuer.issue_serving(KEY.public_key(), names)
    assert verify_chain(issued.certificates(), authority_.bundle, clock.now()) == SpiffeID.for_ca(LOCAL)
    names_found = issued.certificates()[0].extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names_found.get_values_for_type(x509.DNSName) == ["istiod.istio-system.svc", "localhost"]
    assert [str(address) for address in names_found.get_values_for_type(x509.IPAddress)] == ["10.0.0.1", "::1"]
    assert [entry.attested.method for entry in log.records] == ["self"]


async def test_a_server_name_that_is_none_is_refused(issuer: Issuer) -> None:
    with pytest.raises(MalformedError):
        await issuer.issue_serving(KEY.public_key(), ["not a name"])


async def test_a_ca_that_nobody_would_believe_does_not_serve(log: MemoryIssuanceLog, clock: FakeClock) -> None:
    root, stranger = FakeAuthority(now=clock.now()), FakeAuthority(now=clock.now())
    issuer_below = FakeAuthority(parent=root, now=clock.now())
    for anchor, fine in ((stranger, False), (root, True)):
        state = IssuerState(issuer_below.certificate, anchor.certificate, key=issuer_below.key)
        authority = open_authority(MemoryAuthorityStore(AuthorityState(LOCAL, state)), LOCAL, clock)
        async with issuer_of(authority, log, clock) as issuer:
            if fine:
                await issuer.issue_serving(KEY.public_key(), ["ca"])
            else:
                with pytest.raises(NotReady):
                    await issuer.issue_serving(KEY.public_key(), ["ca"])


async def test_a_closed_issuer_takes_no_orders_and_is_not_ready(
    authority_: Authority, log: MemoryIssuanceLog, clock: FakeClock
) -> None:
    issuer = Issuer(authority_, IssuanceProfile(), log, clock, RESERVED)
    await issuer.close()
    with pytest.raises(NotReady):
        await issuer.issue(WEB_ORDER)
    assert issuer.ready() is not None


async def test_signing_happens_off_the_event_loop(log: MemoryIssuanceLog, clock: FakeClock) -> None:
    threads: set[int] = set()

    def note(signature: bytes) -> bytes:
        threads.add(threading.get_ident())
        return signature

    key = ExternalKey()
    async with issuer_of(external(key, clock), log, clock) as issuer:
        key.twist = note
        await issuer.issue_many([WEB_ORDER] * 3)
    assert threads
    assert threading.get_ident() not in threads


async def test_no_error_is_told_to_a_stranger_in_full(issuer: Issuer) -> None:
    with pytest.raises(IstioAuthError) as caught:
        await issuer.issue(order(spiffe_id=SpiffeID.for_ca(LOCAL)))
    assert str(caught.value) != caught.value.public
