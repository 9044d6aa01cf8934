"""What is kept of workloads between two starts: read back only if it is still good, and never beyond the uptime."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from istio_auth.bundle import BundleSet
from istio_auth.errors import ConfigurationError, NotReady
from istio_auth.files import atomic_write
from istio_auth.keys import same_key
from istio_auth.registration import Registration, Selector
from istio_auth.rotation import renewal_due
from istio_auth.spiffe_id import SpiffeID, TrustDomain
from istio_auth.svid import X509SVID
from node_agent.backoff import Backoff
from node_agent.file_system import file_system
from node_agent.workloads.cache import Held, WorkloadCache
from node_agent.workloads.keeping import Keeping
from node_agent.workloads.kept import WorkloadFolder
from node_agent.workloads.plan import plan
from tests.fakes.authority import HOUR, FakeAuthority
from tests.fakes.clock import FakeClock
from tests.fakes.waiting import until

NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="to give a file away needs root")

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


def file_of(tmp_path: Path, number: int) -> Path:
    """Where the SVID of one of the rows is kept."""
    name = hashlib.sha256(str(ROWS[number].spiffe_id).encode()).hexdigest()[:32]
    return tmp_path / "workloads" / f"{name}.pem"


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


def damaged(path: Path, damage: str, authority: FakeAuthority, now: datetime) -> None:
    """Damage the kept SVID of `/web` in one way."""
    good = path.read_bytes()
    asked, _, _ = good.partition(b"\n")

    def of(svid: X509SVID) -> bytes:
        return asked + b"\n" + svid.key_pem() + svid.chain_pem()

    content: dict[str, Callable[[], bytes]] = {
        "garbage": lambda: b"garbage",
        "half": lambda: good[:-300],
        "ended": lambda: of(authority.svid("/web", not_before=now - 2 * HOUR, not_after=now - HOUR)),
        "not begun": lambda: of(authority.svid("/web", not_before=now + HOUR, not_after=now + 2 * HOUR)),
        "unknown root": lambda: of(FakeAuthority(now=now).svid("/web")),
        "other trust domain": lambda: of(FakeAuthority("other.test", now=now).svid("/web")),
        "another's": lambda: of(authority.svid("/db")),
        "another key": lambda: asked + b"\n" + authority.svid("/web").key_pem() + authority.svid("/web").chain_pem(),
        "nothing asked": lambda: good.partition(b"\n")[2],
        "huge": lambda: good + b"\n" * (2 << 20),
    }
    if damage in content:
        path.write_bytes(content[damage]())
    elif damage == "exposed":
        path.chmod(0o644)
    elif damage == "link":
        path.rename(path.with_name("elsewhere"))
        path.symlink_to("elsewhere")
    elif damage == "wrong owner":
        os.chown(path, 65534, -1)


REASONS = {
    "garbage": "expected",
    "half": "truncated|does not parse",
    "ended": "ended|expired|valid until",
    "not begun": "valid from|not valid before",
    "unknown root": "does not chain|no chain|path",
    "other trust domain": "other.test",
    "another's": "which has another name here",
    "another key": "key",
    "nothing asked": "expected",
    "huge": "larger than",
    "exposed": "open to others",
    "link": "it is a link",
    "wrong owner": "belongs to uid 65534",
}


@pytest.mark.parametrize(
    "damage",
    [pytest.param(each, marks=[pytest.mark.root, NEEDS_ROOT] if each == "wrong owner" else []) for each in REASONS],
)
def test_what_is_no_longer_good_is_removed_and_the_others_are_served(
    tmp_path: Path, cache: WorkloadCache, authority: FakeAuthority, clock: FakeClock, damage: str
) -> None:
    folder(tmp_path).keep(cache.snapshot, registrations=True)
    path = file_of(tmp_path, 0)
    good = path.read_bytes()
    damaged(path, damage, authority, clock.now())
    with capture_logs() as lines:
        assert set(restored(tmp_path, authority, clock).snapshot.held) == {ROWS[1].spiffe_id}
    (line,) = [line for line in lines if line["event"] == "a kept SVID is not used"]
    assert (line["path"], bool(re.search(REASONS[damage], line["reason"]))) == (str(path), True), line
    assert not path.exists()
    path.write_bytes(good)
    path.chmod(0o600)
    assert set(restored(tmp_path, authority, clock).snapshot.held) == {row.spiffe_id for row in ROWS}


def test_a_lost_bit_anywhere_is_refused_or_changes_nothing(
    tmp_path: Path, cache: WorkloadCache, authority: FakeAuthority, clock: FakeClock
) -> None:
    folder(tmp_path).keep(cache.snapshot, registrations=True)
    web = ROWS[0].spiffe_id
    for path in (file_of(tmp_path, 0), tmp_path / "workloads/registrations.json"):
        good = path.read_bytes()
        for position in range(0, len(good), 13):
            flipped = bytearray(good)
            flipped[position] ^= 1 << (position % 8)
            path.write_bytes(flipped)
            path.chmod(0o600)
            found = restored(tmp_path, authority, clock).snapshot
            assert found.registrations in ((), ROWS)
            if web in found.held:
                assert found.held[web].svid.chain == cache.snapshot.held[web].svid.chain
                assert found.held[web].svid.key_pem() == cache.snapshot.held[web].svid.key_pem()
            folder(tmp_path).keep(cache.snapshot, registrations=True)


def test_what_can_not_even_be_removed_holds_up_nothing(
    tmp_path: Path, cache: WorkloadCache, authority: FakeAuthority, clock: FakeClock
) -> None:
    folder(tmp_path).keep(cache.snapshot, registrations=True)
    (tmp_path / "workloads/0.pem/inside").mkdir(parents=True)
    found = restored(tmp_path, authority, clock)
    assert set(found.snapshot.held) == {row.spiffe_id for row in ROWS}
    found.put([held(authority, ROWS[0])])
    with pytest.raises(ConfigurationError, match=r"0\.pem"):
        folder(tmp_path).keep(found.snapshot, registrations=True)
    kept = restored(tmp_path, authority, clock).snapshot.held[ROWS[0].spiffe_id]
    assert kept.svid.chain == found.snapshot.held[ROWS[0].spiffe_id].svid.chain


def test_an_svid_of_who_is_registered_no_more_is_not_served_and_goes(
    tmp_path: Path, cache: WorkloadCache, authority: FakeAuthority, clock: FakeClock
) -> None:
    folder(tmp_path).keep(cache.snapshot, registrations=True)
    path = file_of(tmp_path, 0)
    content = path.read_bytes()
    cache.register(ROWS[1:])
    folder(tmp_path).keep(cache.snapshot, registrations=True)
    path.write_bytes(content)  # as of an agent that was killed between the two
    path.chmod(0o600)
    found = restored(tmp_path, authority, clock).snapshot
    assert set(found.held) == {ROWS[1].spiffe_id}
    folder(tmp_path).keep(found, registrations=True)
    assert not path.exists()


def test_an_svid_that_was_asked_for_by_other_names_or_another_lifetime_is_served_and_replaced_at_once(
    tmp_path: Path, cache: WorkloadCache, authority: FakeAuthority, clock: FakeClock
) -> None:
    cache.register((replace(ROWS[0], dns_names=("web.test",)), replace(ROWS[1], ttl=HOUR / 2)))
    folder(tmp_path).keep(cache.snapshot, registrations=True)  # and killed before the CA was asked again
    found = restored(tmp_path, authority, clock).snapshot
    assert set(found.held) == {row.spiffe_id for row in ROWS}
    assert set(plan(found, frozenset(), clock.now()).renew) == set(found.wanted.values())


@pytest.mark.parametrize(
    "content",
    ["garbage", "{}", "[]", '{"registrations": "[]"}', '{"registrations": "{}", "sha256": "%s"}', '"x"'],
)
def test_damaged_registrations_count_as_none(
    tmp_path: Path, cache: WorkloadCache, authority: FakeAuthority, clock: FakeClock, content: str
) -> None:
    folder(tmp_path).keep(cache.snapshot, registrations=True)
    path = tmp_path / "workloads/registrations.json"
    path.write_text(content.replace("%s", hashlib.sha256(b"{}").hexdigest()))
    with capture_logs() as lines:
        found = restored(tmp_path, authority, clock).snapshot
    assert (found.registrations, found.held) == ((), {})
    assert [line["path"] for line in lines if line["event"] == "the kept registrations are not used"] == [str(path)]


def test_one_registration_that_is_none_takes_no_other_along(
    tmp_path: Path, cache: WorkloadCache, authority: FakeAuthority, clock: FakeClock
) -> None:
    elsewhere = Registration(SpiffeID.parse("spiffe://other.test/web"), frozenset({Selector.parse("unix:uid:1")}))
    cache.register((ROWS[0], elsewhere))
    folder(tmp_path).keep(cache.snapshot, registrations=True)
    with capture_logs() as lines:
        assert restored(tmp_path, authority, clock).snapshot.registrations == ROWS[:1]
    assert any("other.test" in str(line.get("reason")) for line in lines)


def test_what_somebody_removed_is_written_again(tmp_path: Path, cache: WorkloadCache) -> None:
    kept = folder(tmp_path)
    kept.keep(cache.snapshot, registrations=True)
    before = {path.name: path.read_bytes() for path in (tmp_path / "workloads").iterdir()}
    shutil.rmtree(tmp_path / "workloads")
    kept.keep(cache.snapshot, registrations=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "workloads").iterdir()} == before


class TestWhereThereIsNoRoom:
    async def test_it_is_told_once_and_kept_as_soon_as_there_is(
        self, tmp_path: Path, cache: WorkloadCache, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        full, writes = True, 0

        def write(path: Path, content: bytes) -> None:
            nonlocal writes
            writes += 1
            if full:
                raise NotReady("disk full")
            atomic_write(path, content)

        monkeypatch.setattr("node_agent.workloads.kept.atomic_write", write)

        quick = Backoff(longest=timedelta(milliseconds=20), first=timedelta(milliseconds=1))
        keeping = Keeping(folder(tmp_path), cache, TRUST_DOMAIN, from_ca=True, backoff=quick)
        with capture_logs() as lines:
            running = asyncio.create_task(keeping.run(lambda: True))
            await until(lambda: writes > 5)
            assert "disk full" in str(keeping.trouble)
            full = False
            await until(lambda: keeping.trouble is None)
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        assert len([line for line in lines if line.get("reason") == "disk full"]) == 1
        assert len(list((tmp_path / "workloads").glob("*.pem"))) == len(ROWS)

    def test_what_fits_is_kept(
        self,
        tmp_path: Path,
        cache: WorkloadCache,
        authority: FakeAuthority,
        clock: FakeClock,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def write(path: Path, content: bytes) -> None:
            if path == file_of(tmp_path, 0):
                raise NotReady("disk full")
            atomic_write(path, content)

        monkeypatch.setattr("node_agent.workloads.kept.atomic_write", write)
        with pytest.raises(NotReady):
            folder(tmp_path).keep(cache.snapshot, registrations=True)
        assert set(restored(tmp_path, authority, clock).snapshot.held) == {ROWS[1].spiffe_id}

    def test_a_start_is_possible(
        self, tmp_path: Path, cache: WorkloadCache, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object) -> None:
            raise NotReady("disk full")

        monkeypatch.setattr("node_agent.workloads.kept.atomic_write", full)
        keeping = Keeping(folder(tmp_path), cache, TRUST_DOMAIN, from_ca=True)
        assert not keeping.restore(clock.now(), lambda: 0.5)
        assert "disk full" in str(keeping.trouble)


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
        folder(tmp_path).open()
    (tmp_path / "workloads").chmod(0o700)
    folder(tmp_path).open()


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
