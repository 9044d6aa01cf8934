"""The watch over the authority's own end."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from ca.authority.authority import open_authority
from ca.authority.plugged import Rollout, open_plugged_authority, open_shared_authority
from ca.authority.watch import AuthorityWatch
from istio_auth.errors import ConfigurationError
from istio_auth.pem import write_certificates, write_private_key
from istio_auth.spiffe_id import TrustDomain
from tests.fakes.authority import FakeAuthority
from tests.fakes.authority_store import MemoryAuthorityStore
from tests.fakes.clock import FakeClock
from tests.fakes.issuer_source import MemoryIssuerSource

DOMAIN = TrustDomain("cluster.local")
DAY = timedelta(days=1)


async def test_a_root_of_ours_is_renewed_in_its_last_fifth_and_not_before(clock: FakeClock) -> None:
    authority = open_authority(MemoryAuthorityStore(), DOMAIN, clock, lifetime=100 * DAY)
    watch, first = AuthorityWatch(authority, clock), authority.active
    clock.advance(79 * DAY)
    await watch.look()
    assert authority.active is first
    clock.advance(2 * DAY)
    await watch.look()
    assert authority.active is not first
    assert authority.remaining(clock.now()) > 99 * DAY


@pytest.mark.parametrize(
    ("lifetime", "longest"), [(3650 * DAY, timedelta(hours=1)), (timedelta(minutes=10), timedelta(seconds=4))]
)
def test_even_a_short_life_is_looked_at_often_enough(clock: FakeClock, lifetime: timedelta, longest: timedelta) -> None:
    authority = open_authority(MemoryAuthorityStore(), DOMAIN, clock, lifetime=lifetime)
    assert timedelta(seconds=1) <= AuthorityWatch(authority, clock).interval <= longest


async def test_files_that_can_not_be_used_do_not_keep_our_own_root_from_being_renewed(clock: FakeClock) -> None:
    source = MemoryIssuerSource()
    authority = open_shared_authority(
        source, MemoryAuthorityStore(), DOMAIN, clock, rollout=Rollout(lambda _: True), longest_ttl=DAY
    )
    first = authority.active
    source.content = {"ca-cert.pem": b"garbage"}
    clock.time = authority.not_after - DAY
    with pytest.raises(ConfigurationError, match="incomplete"):
        await AuthorityWatch(authority, clock, shared=True).look()
    assert authority.active is not first


def plug_in(folder: Path, issuer: FakeAuthority) -> None:
    (folder / "ca-cert.pem").write_bytes(write_certificates([issuer.certificate]))
    (folder / "ca-key.pem").write_bytes(write_private_key(issuer.key))
    (folder / "ca-key.pem").chmod(0o600)
    (folder / "cert-chain.pem").write_bytes(write_certificates([*issuer.intermediates]))
    (folder / "root-cert.pem").write_bytes(write_certificates([issuer.root]))


async def test_a_plugged_in_issuer_is_followed_and_a_bad_one_leaves_the_old_in_use(tmp_path: Path) -> None:
    root = FakeAuthority()
    first, second = FakeAuthority(parent=root), FakeAuthority(parent=root)
    clock = FakeClock(root.now)
    plug_in(tmp_path, first)
    authority = open_plugged_authority(tmp_path, MemoryAuthorityStore(), DOMAIN, clock, longest_ttl=DAY)
    watch = AuthorityWatch(authority, clock)
    assert watch.interval <= timedelta(minutes=1)
    plug_in(tmp_path, second)
    (tmp_path / "ca-cert.pem").write_bytes(write_certificates([first.certificate]))
    with pytest.raises(ConfigurationError):
        await watch.look()
    assert authority.active.certificate == first.certificate
    plug_in(tmp_path, second)
    await watch.look()
    assert authority.active.certificate == second.certificate
