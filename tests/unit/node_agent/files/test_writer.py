"""A folder of files follows its workload: written as one whole, its reader told until it was told."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import pytest
import structlog

from istio_auth.bundle import BundleSet
from istio_auth.registration import Registration, Selector
from istio_auth.spiffe_id import SpiffeID
from node_agent.backoff import Backoff
from node_agent.files.report import files_document
from tests.fakes.authority import FakeAuthority
from tests.fakes.waiting import until
from tests.unit.node_agent.files.world import ROW, WEB, World, counting

OTHER = SpiffeID.parse("spiffe://cluster.local/other")


class Group(NamedTuple):
    """As the `grp` module has it."""

    gr_gid: int


@pytest.fixture
def world(authority: FakeAuthority, tmp_path: Path) -> World:
    return World(authority, tmp_path / "certs")


@pytest.fixture
def small_file_system(world: World) -> Iterator[None]:
    """The folder is a file system of its own."""
    world.folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", world.folder], check=True)
    yield
    subprocess.run(["umount", world.folder], check=True)


async def test_files_follow_renewals_and_roots(world: World) -> None:
    async with world.writing() as writer:
        assert writer.is_current() is None
        for _ in range(3):
            svid = world.renew()
            await until(lambda svid=svid: writer.state.svid is svid)  # type: ignore[misc]  # bound now
            assert world.written().chain == svid.chain
        assert writer.is_current()
        assert world.progress == 3
        new = FakeAuthority(now=world.authority.now)
        both = world.authority.bundle().x509_authorities + new.bundle().x509_authorities
        bundle = type(world.authority.bundle())(WEB.trust_domain, both)
        world.cache.trust(BundleSet((bundle,)))
        assert not writer.is_current()
        await until(writer.is_current)
        assert (world.folder / "root-cert.pem").read_bytes() == bundle.to_pem()
        assert writer.state.spiffe_id == WEB


async def test_what_others_change_in_the_cache_writes_nothing(world: World) -> None:
    async with world.writing() as writer:
        world.renew()
        await until(writer.is_current)
        before = (world.folder / "..data").readlink()
        world.cache.register((ROW, Registration(OTHER, frozenset({Selector("a", "b")}))))
        world.renew()
        await until(lambda: world.progress == 2)
        assert (world.folder / "..data").readlink() != before


async def test_a_reader_is_told_after_each_change_and_told_again_until_it_works(world: World, tmp_path: Path) -> None:
    told, broken = tmp_path / "told", tmp_path / "broken"
    broken.touch()
    script = (
        "import os, pathlib, sys\n"
        f"sys.exit('not now') if os.path.exists({str(broken)!r}) else None\n"
        f"with open({str(told)!r}, 'a') as file:\n"
        "    file.write(os.environ['ISTIO_AUTH_FOLDER'] + '\\n')\n"
    )
    async with world.writing(command=(sys.executable, "-I", "-c", script)) as writer:
        svid = world.renew()
        await until(lambda: writer.state.attempts >= 2)
        assert writer.state.trouble == "the command ended with 1: not now"
        assert world.written().chain == svid.chain, "the files are new, told or not"
        assert not told.exists()
        broken.unlink()
        await until(lambda: writer.state.told and writer.state.told.result == "the command ended well")
        assert writer.state.attempts == 0
        world.renew()
        await until(lambda: told.read_text().count(str(world.folder)) == 2)
        assert world.writes == 2, "nothing is written again only because somebody was not told"


async def test_a_folder_that_can_not_be_written_is_tried_again(world: World, tmp_path: Path) -> None:
    world.folder.parent.mkdir(exist_ok=True)
    world.folder.write_text("in the way")
    async with world.writing() as writer:
        world.renew()
        await until(lambda: writer.state.trouble is not None)
        assert str(world.folder) in str(writer.state.trouble)
        world.folder.unlink()
        await until(writer.is_current)
        assert writer.state.trouble is None


async def test_files_that_no_registration_fits_are_told_of_and_written_as_soon_as_one_does(world: World) -> None:
    world.cache.register((Registration(WEB, frozenset({Selector("files", "other")})),))
    with structlog.testing.capture_logs() as lines:
        async with world.writing() as writer:
            await until(lambda: any(line.get("missing") == ["files:other"] for line in lines))
            world.cache.register((ROW,))
            world.renew()
            await until(writer.is_current)


@pytest.mark.parametrize(
    ("layout", "key", "others"),
    [
        ("istio", "key.pem", {"cert-chain.pem", "root-cert.pem"}),
        ("tls", "tls.key", {"tls.crt", "ca.crt"}),
        ("credential-bundle", "credential-bundle.pem", {"trust-bundle.pem"}),
    ],
)
async def test_names_modes_and_group_are_as_they_are_set(world: World, layout: str, key: str, others: set[str]) -> None:
    async with world.writing(layout=layout, key_mode="0640", group=str(os.getegid())) as writer:
        world.renew()
        await until(writer.is_current)
    files = {path.name: path.stat() for path in world.folder.iterdir() if not path.name.startswith("..")}
    assert set(files) == {key, *others}
    assert (files[key].st_mode & 0o777, files[key].st_gid) == (0o640, os.getegid())


async def test_files_that_somebody_took_away_come_back(world: World, tmp_path: Path) -> None:
    async with world.writing(command=counting(tmp_path / "told")) as writer:
        svid = world.renew()
        await until(writer.is_current)
        world.folder.rename(tmp_path / "away")
        await until(lambda: (tmp_path / "told").read_text() == "xx")  # when all of them are there
        assert world.written().chain == svid.chain


async def test_a_reader_that_was_not_told_is_a_laggard_and_what_becomes_of_it_is_seen(
    world: World, tmp_path: Path
) -> None:
    reason = tmp_path / "reason"
    reason.write_text("not now")
    script = f"import sys; reason = open({str(reason)!r}).read(); sys.exit(reason or 0)"
    async with world.writing(command=(sys.executable, "-I", "-c", script)) as writer:
        svid = world.renew()
        await until(lambda: writer.state.attempts)
        assert writer.is_current() is False
        seen = files_document(writer)
        assert (seen["hook"], seen["told"], seen["bundle"]) == ("command", "", "lagging")
        assert seen["serial"] == f"{svid.leaf.serial_number:x}"
        assert seen["next_attempt"]
        assert "not now" in str(seen["trouble"])
        reason.write_text("")
        await until(writer.is_current)
        seen = files_document(writer)
        assert (seen["told"], seen["bundle"], seen["trouble"]) == ("the command ended well", "current", None)
        assert (seen["failed_attempts"], seen["next_attempt"]) == (0, None)
        assert seen["told_at"]
        assert json.dumps(seen)


async def test_what_others_change_in_the_cache_does_not_hasten_the_next_attempt(world: World, tmp_path: Path) -> None:
    told = tmp_path / "told"
    script = f"open({str(told)!r}, 'a').write('x'); raise SystemExit(1)"
    world.backoff = Backoff(first=timedelta(hours=1), longest=timedelta(hours=1), draw=lambda: 0.5)
    async with world.writing(command=(sys.executable, "-I", "-c", script)) as writer:
        world.renew()
        await until(lambda: writer.state.attempts == 1)
        for _ in range(5):
            world.cache.register((ROW, Registration(OTHER, frozenset({Selector("a", "b")}))))
            world.cache.register((ROW,))
            await asyncio.sleep(0.02)  # so that it may do what it should not
        assert (told.read_text(), writer.state.attempts) == ("x", 1)
        world.renew()
        await until(lambda: writer.state.attempts == 2)
        assert told.read_text() == "xx", "what is new for itself is tried at once"


async def test_a_group_that_is_not_there_yet_is_waited_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async with world.writing(key_mode="0640", group="not-there-yet") as writer:
        world.renew()
        await until(lambda: writer.state.trouble)
        assert writer.state.trouble == "files web: there is no group 'not-there-yet'"
        assert not world.folder.exists()
        monkeypatch.setattr("node_agent.files.settings.grp.getgrnam", lambda _name: Group(os.getegid()))
        await until(writer.is_current)


async def test_one_folder_that_can_not_be_written_does_not_hold_up_another(world: World, tmp_path: Path) -> None:
    async with world.writing(key_mode="0640", group="not-there-yet") as bad:
        world.folder, world.backoff = tmp_path / "other", Backoff()
        async with world.writing() as good:
            world.renew()
            await until(good.is_current)
            assert bad.is_current() is None


async def test_on_a_full_disk_the_old_files_stay_and_room_mends_it(world: World) -> None:
    """Full in truth: by a limit on the size of files, which writing hits as it hits the end of a disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with structlog.testing.capture_logs():  # pytest keeps what is printed in a file, which may not grow either
        await lives_through(world, limits)


async def lives_through(world: World, limits: tuple[int, int]) -> None:
    async with world.writing() as writer:
        old = world.renew()
        await until(writer.is_current)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        try:
            new = world.renew()
            await until(lambda: writer.state.trouble)
            assert "File too large" in str(writer.state.trouble)
            assert world.written().chain == old.chain
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        await until(lambda: writer.state.svid is new)
        assert world.written().chain == new.chain


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="a file system of one's own needs root")
async def test_on_a_full_file_system_a_reader_is_told_once_there_is_room(
    world: World, tmp_path: Path, small_file_system: None
) -> None:
    told, ballast = tmp_path / "told", world.folder / "ballast"
    with suppress(OSError):
        ballast.write_bytes(b"x" * 2**20)
    async with world.writing(command=counting(told)) as writer:
        world.renew()
        await until(lambda: writer.state.trouble)
        assert "No space left on device" in str(writer.state.trouble)
        assert not told.exists()
        ballast.unlink()
        await world.kept(writer)
    assert told.read_text() == "x"


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
async def test_a_folder_of_another_user_is_told_of_by_an_agent_without_privileges(world: World) -> None:
    world.folder.mkdir()
    os.chown(world.folder, 60001, 60001)
    world.folder.chmod(0o700)
    async with world.writing() as writer:
        os.seteuid(60002)
        try:
            world.renew()
            await until(lambda: writer.state.trouble)
            assert "Permission denied" in str(writer.state.trouble)
        finally:
            os.seteuid(0)
        await until(writer.is_current)
