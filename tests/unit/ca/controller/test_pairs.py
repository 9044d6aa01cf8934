"""A new key with its certificate: what the plan asked for, and facts that are those one would read from it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from typing import cast

import pytest

from ca.audit import Audit
from ca.authority.authority import Authority, open_authority
from ca.authority.state import AuthorityState, IssuerState
from ca.controller.action import Action, Kind, Reason, Subject
from ca.controller.material import CHAIN, KEY, ROOT, Material, authority_id, digest, read_material
from ca.controller.pairs import PairMaker
from ca.controller.sink import Pair
from ca.controller.tally import Tally
from ca.issuer import IssuedSVID, Issuer, Order, ReservedNames
from ca.metrics import Counts
from ca.profile import IssuanceProfile
from istio_auth.errors import NotAuthorized
from istio_auth.pem import read_certificates
from istio_auth.spiffe_id import SpiffeID, TrustDomain
from tests.fakes.authority import FakeAuthority
from tests.fakes.authority_store import MemoryAuthorityStore
from tests.fakes.clock import FakeClock
from tests.fakes.issuance_log import MemoryIssuanceLog

LOCAL = TrustDomain("cluster.local")
WEB = SpiffeID.for_service_account(LOCAL, "default", "web")
SUBJECT = Subject("default", "web", "uid-web", "istio.web")
CREATE = Action(Kind.CREATE, Reason.ABSENT, SUBJECT, "missing", spiffe_id=WEB)
TTL = timedelta(hours=3)


class Bench:
    """A pair maker over an authority that may be replaced in the middle."""

    def __init__(self, clock: FakeClock, state: AuthorityState) -> None:
        self.store, self.log = MemoryAuthorityStore(state), MemoryIssuanceLog()
        self.authority: Authority = open_authority(self.store, LOCAL, clock)
        self.issuer = Issuer(self.authority, IssuanceProfile(), self.log, clock, ReservedNames.of(LOCAL), threads=1)
        self.tally, self.counts = Tally(), Counts()
        self.pairs = PairMaker(self.issuer, self.authority, Audit(self.counts), self.tally, ttl=TTL)

    def read(self, pair: Pair) -> Material:
        data = {CHAIN: pair.chain, KEY: pair.key, ROOT: self.authority.root_pem()}
        material = read_material(data, self.authority.bundle)
        assert isinstance(material, Material)
        return material


def state(issuer: FakeAuthority, *retired: FakeAuthority) -> AuthorityState:
    """The state of an authority that signs with this issuer."""
    return AuthorityState(
        LOCAL,
        IssuerState(issuer.certificate, issuer.root, issuer.intermediates[1:], key=issuer.key),
        retired=tuple(IssuerState(each.certificate, each.root) for each in retired),
    )


@pytest.fixture(params=["root", "intermediate"])
async def bench(request: pytest.FixtureRequest, clock: FakeClock) -> AsyncIterator[Bench]:
    issuer = FakeAuthority(now=clock.now())
    if request.param == "intermediate":
        issuer = FakeAuthority(parent=FakeAuthority(parent=issuer, now=clock.now()), now=clock.now())
    bench = Bench(clock, state(issuer))
    yield bench
    await bench.issuer.close()


async def test_the_facts_are_those_that_are_read_from_it(bench: Bench) -> None:
    action = replace(CREATE, dns_names=("web.example", "api.example"))
    pair = await bench.pairs.make(action, bench.authority.root_pem())
    assert pair.material == bench.read(pair)
    assert pair.material.other_names == {"web.example", "api.example"}
    assert pair.material.issuer


async def test_the_lifetime_is_the_one_asked_for(bench: Bench, clock: FakeClock) -> None:
    pair = await bench.pairs.make(CREATE, bench.authority.root_pem())
    assert pair.material.not_after == clock.now() + TTL
    assert read_certificates(pair.chain)[0].not_valid_after_utc == clock.now() + TTL


async def test_where_another_issuer_has_signed_than_was_there_before_the_facts_are_read(
    bench: Bench, clock: FakeClock
) -> None:
    class Slow:
        """An issuer that is so busy that the authority changes before it signs."""

        async def issue(self, order: Order) -> IssuedSVID:
            old, other = bench.authority.state.active, FakeAuthority(now=clock.now())
            new = replace(state(other), retired=(replace(old, key=None),), sequence=2)
            bench.store.content = new.to_json()
            await asyncio.to_thread(bench.authority.reload)
            return await bench.issuer.issue(order)

    audit = Audit(bench.counts)
    pairs = PairMaker(cast("Issuer", Slow()), bench.authority, audit, bench.tally, ttl=TTL)
    old = authority_id(bench.authority.active.certificate)
    root = bench.authority.root_pem()
    pair = await pairs.make(CREATE, root)
    assert pair.material.issuer == authority_id(bench.authority.active.certificate) != old
    assert pair.material.anchors == bench.read(pair).anchors
    assert pair.material.root_digest == digest(root)  # of what is written, which is another one by now


async def test_the_cas_own_name_is_refused_here_as_everywhere(bench: Bench) -> None:
    with pytest.raises(NotAuthorized):
        await bench.pairs.make(replace(CREATE, spiffe_id=SpiffeID.for_ca(LOCAL)), bench.authority.root_pem())
    assert bench.tally.sign_errors == 1
    assert bench.counts.refused.total() == 1
    await bench.pairs.make(CREATE, bench.authority.root_pem())
    assert bench.tally.sign_errors == 1


async def test_the_private_key_is_not_in_what_is_printed_of_it(bench: Bench) -> None:
    pair = await bench.pairs.make(CREATE, bench.authority.root_pem())
    assert b"PRIVATE KEY" in pair.key
    assert "PRIVATE KEY" not in repr(pair)
