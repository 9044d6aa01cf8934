"""The CA's own server certificate: there, right, and replaced in time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from ca.authority.authority import Authority, open_authority
from ca.authority.plugged import Rollout, open_shared_authority
from ca.issuer import Issuer, ReservedNames
from ca.profile import IssuanceProfile
from ca.serving import ServingCertificate
from istio_auth.bundle import TrustBundle
from istio_auth.errors import ConfigurationError, NotReady
from istio_auth.spiffe_id import SpiffeID, TrustDomain
from istio_auth.verify import verify_chain
from tests.fakes.authority import FakeAuthority
from tests.fakes.authority_store import MemoryAuthorityStore
from tests.fakes.clock import FakeClock
from tests.fakes.issuance_log import MemoryIssuanceLog
from tests.fakes.issuer_source import MemoryIssuerSource
from tests.fakes.waiting import until

DOMAIN = TrustDomain("cluster.local")
NAMES = ("localhost", "istiod.istio-system.svc", "127.0.0.1", "::1")
HOUR = timedelta(hours=1)


class Bench:
    """A serving certificate and what it stands on."""

    def __init__(
        self,
        clock: FakeClock,
        *,
        names: tuple[str, ...] = NAMES,
        root_lifetime: timedelta = 1000 * HOUR,
        authority: Authority | None = None,
    ) -> None:
        self.clock = clock
        self.log = MemoryIssuanceLog()
        self.authority = authority or open_authority(MemoryAuthorityStore(), DOMAIN, clock, lifetime=root_lifetime)
        profile = IssuanceProfile(default_ttl=24 * HOUR)
        self.issuer = Issuer(self.authority, profile, self.log, clock, ReservedNames.of(DOMAIN, names))
        self.serving = ServingCertificate(self.issuer, self.authority, names, clock=clock, draw=lambda: 0.5)
        self.renewed = asyncio.Semaphore(0)
        self.serving.source.subscribe(self.renewed.release)

    @property
    def leaf(self) -> x509.Certificate:
        return self.serving.source.svid().chain[0]

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[asyncio.Task[None]]:
        task = asyncio.create_task(self.serving.keep())
        try:
            yield task
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            await self.issuer.close()


async def happened(event: asyncio.Semaphore) -> None:
    async with asyncio.timeout(20):
        await event.acquire()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at the clock often, and try again soon."""
    for name in ("_LOOK", "_FIRST_RETRY"):
        monkeypatch.setattr(f"ca.serving.{name}", timedelta(milliseconds=10))


@pytest.mark.usefixtures("quick")
async def test_it_outlives_a_time_without_the_key_of_the_issuer(clock: FakeClock) -> None:
    first, second = (FakeAuthority(now=clock.now(), lifetime=1000 * HOUR) for _ in range(2))
    store, early, late = MemoryAuthorityStore(), MemoryIssuerSource(first), MemoryIssuerSource(first)
    rollout = Rollout(lambda _: True, settling=timedelta())
    other, authority = (
        open_shared_authority(source, store, DOMAIN, clock, rollout=rollout, longest_ttl=HOUR)
        for source in (early, late)
    )
    bench = Bench(clock, authority=authority)
    async with bench.kept() as keeping:
        await happened(bench.renewed)
        early.show(second)
        other.follow(clock.now())
        authority.reload()  # the issuer is another, and its key not seen yet
        assert bench.issuer.ready() is not None
        late.show(second)
        authority.follow(clock.now())
        await happened(bench.renewed)
        assert not keeping.done()
    assert verify_chain([bench.leaf], TrustBundle(DOMAIN, (second.certificate,)), clock.now()).path == "/ca"


async def test_it_has_the_cas_own_identity_and_every_name(clock: FakeClock) -> None:
    bench = Bench(clock)
    assert bench.serving.not_ready() is not None
    await bench.serving.renew()
    assert bench.serving.not_ready() is None
    svid = bench.serving.source.svid()
    assert verify_chain(svid.chain, bench.authority.bundle, clock.now()) == SpiffeID.for_ca(DOMAIN)
    names = bench.leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost", "istiod.istio-system.svc"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]
    assert [record.certificate for record in bench.log.records] == [bench.leaf.public_bytes(Encoding.DER)]
    await bench.issuer.close()


class CountingClock(FakeClock):
    """Knows how often it was looked at."""

    looks = 0

    def now(self) -> datetime:
        self.looks += 1
        return super().now()


async def test_it_is_replaced_at_half_life_with_a_new_key(quick: None) -> None:
    clock = CountingClock()
    bench = Bench(clock)
    await bench.serving.renew()
    await bench.renewed.acquire()
    first = bench.leaf
    async with bench.kept():
        clock.advance(11 * HOUR)
        seen = clock.looks
        await until(lambda: clock.looks > seen + 5)
        assert bench.leaf is first
        clock.advance(2 * HOUR)
        await happened(bench.renewed)
        assert bench.leaf.serial_number != first.serial_number
        assert public_numbers(bench.leaf) != public_numbers(first)
        assert bench.leaf.not_valid_after_utc > first.not_valid_after_utc


async def test_it_follows_the_authority_at_once(clock: FakeClock) -> None:
    bench = Bench(clock)
    await bench.serving.renew()
    await bench.renewed.acquire()
    async with bench.kept():
        clock.advance(900 * HOUR)  # the last fifth of the root's life; the serving certificate has long ended
        await asyncio.to_thread(bench.authority.renew_if_due, clock.now())
        # It may have found by itself that it was due, a moment before the authority changed.
        await until(lambda: bench.serving.source.bundle(DOMAIN) is bench.authority.bundle)
        assert bench.serving.not_ready() is None


@pytest.mark.parametrize("turns", range(6))
async def test_it_can_be_stopped_in_the_very_moment_of_a_change(clock: FakeClock, turns: int) -> None:
    bench = Bench(clock)
    await bench.serving.renew()
    async with asyncio.timeout(20), bench.kept() as task:
        for _ in range(3):
            await asyncio.sleep(0)
        clock.advance(900 * HOUR)
        bench.authority.renew_if_due(clock.now())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
    assert task.cancelled()


async def test_a_failure_is_tried_again_and_the_old_one_serves_until_its_end(clock: FakeClock, quick: None) -> None:
    bench = Bench(clock)
    await bench.serving.renew()
    await bench.renewed.acquire()
    first = bench.leaf
    bench.log.broken = True
    async with bench.kept() as task:
        clock.advance(13 * HOUR)
        await until(lambda: bench.log.ready() is not None)
        assert bench.leaf is first
        assert bench.serving.not_ready() is None
        clock.advance(12 * HOUR)
        assert bench.serving.not_ready() is not None
        bench.log.broken = False
        await happened(bench.renewed)
        assert bench.serving.not_ready() is None
        assert not task.done()


async def test_what_can_not_be_made_at_the_start_is_an_error(clock: FakeClock) -> None:
    wrong = Bench(clock, names=("not a name",))
    with pytest.raises(ConfigurationError):
        await wrong.serving.renew()
    broken = Bench(clock)
    broken.log.broken = True
    with pytest.raises(NotReady):
        await broken.serving.renew()
    broken.log.broken = False
    await broken.serving.renew()
    for bench in (wrong, broken):
        await bench.issuer.close()


def public_numbers(certificate: x509.Certificate) -> ec.EllipticCurvePublicNumbers:
    key = certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return key.public_numbers()
