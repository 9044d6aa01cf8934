"""A folder of files follows its workload: written as one whole, its reader told until it was told."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path

import pytest
import structlog

from istio_auth.bundle import BundleSet
from istio_auth.registration import Registration, Selector
from istio_auth.spiffe_id import SpiffeID
from istio_auth.svid import X509SVID
from node_agent.backoff import Backoff
from node_agent.cache import Held, WorkloadCache
from node_agent.files.settings import FilesSettings
from node_agent.files.writer import FilesWriter
from node_agent.metrics import Metrics
from node_agent.registrations import Want
from tests.fakes.authority import FakeAuthority
from tests.fakes.clock import FakeClock
from tests.fakes.waiting import until

WEB = SpiffeID.parse("spiffe://cluster.local/web")
ROW = Registration(WEB, frozenset({Selector("files", "web")}))
SOON = timedelta(milliseconds=20)


class World:
    """A cache with one workload, and what is written of it."""

    def __init__(self, authority: FakeAuthority, folder: Path) -> None:
        self.authority, self.folder = authority, folder
        self.cache = WorkloadCache(BundleSet((authority.bundle(),)))
        self.cache.register((ROW,))
        self.progress = 0

    def renew(self) -> X509SVID:
        svid = self.authority.svid("/web")
        self.cache.put([Held(svid, Want(WEB), svid.not_after)])
        return svid

    def written(self) -> X509SVID:
        return X509SVID.parse((self.folder / "cert-chain.pem").read_bytes(), (self.folder / "key.pem").read_bytes())

    def made_progress(self) -> None:
        self.progress += 1

    @asynccontextmanager
    async def writing(self, **settings: object) -> AsyncIterator[FilesWriter]:
        writer = FilesWriter(
            FilesSettings("web", self.folder, **settings),  # type: ignore[arg-type]  # by name
            self.cache,
            clock=FakeClock(),
            metrics=Metrics(),
            progress=self.made_progress,
            backoff=Backoff(first=SOON, longest=SOON),
        )
        task = asyncio.create_task(writer.run())
        try:
            yield writer
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


@pytest.fixture
def world(authority: FakeAuthority, tmp_path: Path) -> World:
    return World(authority, tmp_path / "certs")


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
        world.cache.register(
            (ROW, Registration(SpiffeID.parse("spiffe://cluster.local/other"), frozenset({Selector("a", "b")})))
        )
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
        await until(lambda: writer.state.told == "the command ended well")
        assert writer.state.attempts == 0
        world.renew()
        await until(lambda: told.read_text().count(str(world.folder)) == 2)
        assert world.progress == 2, "nothing is written again only because somebody was not told"


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
    ("layout", "names"),
    [("istio", {"cert-chain.pem", "key.pem", "root-cert.pem"}), ("tls", {"tls.crt", "tls.key", "ca.crt"})],
)
async def test_names_modes_and_group_are_as_they_are_set(world: World, layout: str, names: set[str]) -> None:
    async with world.writing(layout=layout, key_mode="0640", group="0") as writer:
        world.renew()
        await until(writer.is_current)
    files = {path.name: path.stat() for path in world.folder.iterdir() if not path.name.startswith("..")}
    assert set(files) == names
    key = next(name for name in names if "key" in name)
    assert (files[key].st_mode & 0o777, files[key].st_gid) == (0o640, 0)
