"""What is kept of workloads between two starts: read back only if it is still good, and never beyond the uptime."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from istio_auth.bundle import BundleSet
from istio_auth.errors import ConfigurationError
from istio_auth.keys import same_key
from istio_auth.registration import Registration, Selector
from istio_auth.rotation import renewal_due
from istio_auth.spiffe_id import SpiffeID, TrustDomain
from node_agent.cache import Held, WorkloadCache
from node_agent.kept_workloads import Keeping, WorkloadFolder, file_system
from tests.fakes.authority import HOUR, FakeAuthority
from tests.fakes.clock import FakeClock

TRUST_DOMAIN = TrustDomain("cluster.local")
ROWS = (
    Registration(SpiffeID.parse("spiffe://cluster.local/web"), frozenset({Selector.parse("unix:uid:1")})),
    Registration(
        SpiffeID.parse("spiffe://cluster.local/db"),
        frozenset({Selector.parse("unix:uid:2"), Selector.parse("socket:db")}),
        timedelta(hours=1, milliseconds=5),
        ("db.test",),
        "inside",
    ),
)


@pytest.fixture
def clock(authority: FakeAuthority) -> FakeClock:
    return FakeClock(authority.now)


@pytest.fixture
def cache(authority: FakeAuthority) -> WorkloadCache:
    cache = WorkloadCache(BundleSet((authority.bundle(),)))
    cache.register(ROWS)
    cache.put(held(authority, row) for row in ROWS)
    return cache


def held(authority: FakeAuthority, row: Registration) -> Held:
    cache = WorkloadCache(BundleSet())
    cache.register((row,))
    svid = authority.svid(row.spiffe_id.path)
    return Held(svid, cache.snapshot.wanted[row.spiffe_id], renewal_due(svid.not_before, svid.not_after, draw=0.5))


def folder(tmp_path: Path, boot: str = "one") -> WorkloadFolder:
    return WorkloadFolder(tmp_path / "workloads", boot=boot)


def restored(tmp_path: Path, authority: FakeAuthority, clock: FakeClock, *, boot: str = "one") -> WorkloadCache:
    """What a new start finds."""
    cache = WorkloadCache(BundleSet((authority.bundle(),)))
    Keeping(folder(tmp_path, boot), cache, TRUST_DOMAIN, from_ca=True).restore(clock.now(), lambda: 0.5)
    return cache


def test_what_was_held_is_held_again(
    tmp_path: Path, cache: WorkloadCache, authority: FakeAuthority, clock: FakeClock
) -> None:
    folder(tmp_path).keep(cache.snapshot, registrations=True)
    found = restored(tmp_path, authority, clock).snapshot
    assert found.registrations == ROWS
    assert found.wanted == cache.snapshot.wanted
    assert found.held.keys() == cache.snapshot.held.keys()
    for spiffe_id, before in cache.snapshot.held.items():
        after = found.held[spiffe_id]
        assert after.svid.chain == before.svid.chain
        assert same_key(after.svid.private_key.public_key(), before.svid.private_key.public_key())
        assert (after.want, after.due) == (before.want, before.due)


def test_nobody_else_may_read_it(tmp_path: Path, cache: WorkloadCache) -> None:
    folder(tmp_path).keep(cache.snapshot, registrations=True)
    assert (tmp_path / "workloads").stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "workloads").iterdir()} == {0o600}


def test_another_uptime_of_the_machine_finds_nothing_and_the_keys_are_gone(
    tmp_path: Path, cache: WorkloadCache, authority: FakeAuthority, clock: FakeClock
) -> None:
    folder(tmp_path).keep(cache.snapshot, registrations=True)
    assert restored(tmp_path, authority, clock, boot="two").snapshot.registrations == ()
    assert [path.name for path in (tmp_path / "workloads").iterdir()] == ["boot-id"]


def test_a_key_goes_with_its_registration_and_an_old_one_with_its_renewal(
    tmp_path: Path, cache: WorkloadCache, authority: FakeAuthority
) -> None:
    kept = folder(tmp_path)
    kept.keep(cache.snapshot, registrations=True)
    before = {path: path.read_bytes() for path in (tmp_path / "workloads").glob("*.pem")}
    cache.put([held(authority, ROWS[0])])
    kept.keep(cache.snapshot, registrations=True)
    changed = [path for path, content in before.items() if path.read_bytes() != content]
    assert len(changed) == 1
    cache.register(ROWS[1:])
    kept.keep(cache.snapshot, registrations=True)
    assert not changed[0].exists()
    assert len(list((tmp_path / "workloads").glob("*.pem"))) == 1


@pytest.mark.parametrize("damage", ["garbage", "half", "ended", "foreign", "exposed"])
def test_what_is_no_longer_good_is_removed_and_the_others_are_served(
    tmp_path: Path, cache: WorkloadCache, authority: FakeAuthority, clock: FakeClock, damage: str
) -> None:
    folder(tmp_path).keep(cache.snapshot, registrations=True)
    web = cache.snapshot.held[ROWS[0].spiffe_id].svid
    (path,) = (each for each in (tmp_path / "workloads").glob("*.pem") if web.chain_pem() in each.read_bytes())
    good = path.read_bytes()
    ended = authority.svid("/web", not_before=clock.now() - 2 * HOUR, not_after=clock.now() - HOUR)
    foreign = FakeAuthority(now=clock.now()).svid("/web")
    content = {
        "garbage": b"garbage",
        "half": good[:-300],
        "ended": ended.key_pem() + ended.chain_pem(),
        "foreign": foreign.key_pem() + foreign.chain_pem(),
    }
    path.write_bytes(content.get(damage, good))
    path.chmod(0o644 if damage == "exposed" else 0o600)
    assert set(restored(tmp_path, authority, clock).snapshot.held) == {ROWS[1].spiffe_id}
    assert not path.exists()
    path.write_bytes(good)
    path.chmod(0o600)
    assert set(restored(tmp_path, authority, clock).snapshot.held) == {row.spiffe_id for row in ROWS}


@pytest.mark.parametrize("content", ["garbage", "{}", '[{"spiffe_id": "spiffe://other/web", "selectors": ["a:b"]}]'])
def test_damaged_registrations_count_as_none(
    tmp_path: Path, cache: WorkloadCache, authority: FakeAuthority, clock: FakeClock, content: str
) -> None:
    folder(tmp_path).keep(cache.snapshot, registrations=True)
    (tmp_path / "workloads/registrations.json").write_text(content)
    found = restored(tmp_path, authority, clock).snapshot
    assert (found.registrations, found.held) == ((), {})


def test_registrations_of_a_file_are_not_kept_beside_it(
    tmp_path: Path, cache: WorkloadCache, authority: FakeAuthority, clock: FakeClock
) -> None:
    folder(tmp_path).keep(cache.snapshot, registrations=False)
    again = WorkloadCache(cache.snapshot.bundles)
    again.register(ROWS[:1])
    assert not Keeping(folder(tmp_path), again, TRUST_DOMAIN, from_ca=False).restore(clock.now(), lambda: 0.5)
    assert set(again.snapshot.held) == {ROWS[0].spiffe_id}


def test_a_folder_that_others_may_enter_is_refused(tmp_path: Path) -> None:
    (tmp_path / "workloads").mkdir(mode=0o755)
    with pytest.raises(ConfigurationError, match="chmod 700"):
        folder(tmp_path)


def test_the_kind_of_file_system_is_read_off_the_mounts(tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "22 1 0:1 / / rw - ext4 /dev/x rw\n"
        "23 22 0:2 / /run rw,nosuid shared:5 - tmpfs tmpfs rw\n"
        "24 23 0:3 / /run/with\\040blank rw - ext4 /dev/y rw\n"
    )
    assert file_system(Path("/run/istio-auth/workloads"), mounts) == "tmpfs"
    assert file_system(Path("/run/with blank/workloads"), mounts) == "ext4"
    assert file_system(Path("/runner"), mounts) == "ext4"
    assert file_system(Path("/run"), tmp_path / "missing") == ""
