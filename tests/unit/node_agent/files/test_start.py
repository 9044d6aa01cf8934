"""An agent that starts anew finds its files: what is as it shall be is left, and nobody is told twice, or never."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import pytest

from istio_auth.bundle import BundleSet, TrustBundle
from tests.fakes.authority import FakeAuthority
from tests.fakes.waiting import until
from tests.unit.node_agent.files.world import WEB, World, counting


@pytest.fixture
def world(authority: FakeAuthority, tmp_path: Path) -> World:
    return World(authority, tmp_path / "certs")


class TestAnAgentThatStartsAnew:
    async def test_writes_nothing_and_tells_nobody_where_all_is_as_it_was(self, world: World, tmp_path: Path) -> None:
        hook = counting(tmp_path / "told")
        world.renew()
        async with world.writing(command=hook) as first:
            await world.kept(first)
        before = (world.folder / "..data").readlink()
        async with world.writing(command=hook) as second:
            await until(second.is_current)
            assert second.state.told == first.state.told, "what was kept of it"
            assert second.state.at is not None
            await until(lambda: world.writes == 1)
        assert (world.folder / "..data").readlink() == before
        assert (tmp_path / "told").read_text() == "x"

    @pytest.mark.parametrize("fault", ["content", "key_mode", "removed", "plain file", "other names"])
    async def test_writes_what_is_not_as_it_shall_be_and_tells(self, world: World, tmp_path: Path, fault: str) -> None:
        hook = counting(tmp_path / "told")
        svid = world.renew()
        async with world.writing(command=hook) as first:
            await world.kept(first)
        key, settings = world.folder / "key.pem", dict[str, object]()
        if fault == "content":
            (world.folder / "root-cert.pem").write_bytes(b"")
        elif fault == "key_mode":
            key.chmod(0o644)
        elif fault == "removed":
            (world.folder / "..data/key.pem").unlink()
        elif fault == "plain file":
            content = key.read_bytes()
            key.unlink()
            key.write_bytes(content)
        else:
            settings = {"layout": "tls"}
        async with world.writing(command=hook, **settings) as second:
            await until(second.is_current)
        assert world.writes == 2
        assert (tmp_path / "told").read_text() == "xx"
        if not settings:
            assert world.written().chain == svid.chain
            assert key.is_symlink()
            assert key.stat().st_mode & 0o777 == 0o600

    async def test_tells_in_another_way_if_it_is_to_be_told_so_now(self, world: World, tmp_path: Path) -> None:
        world.renew()
        async with world.writing() as first:
            await until(first.is_current)
        for name in ("one", "one", "two"):
            async with world.writing(command=counting(tmp_path / name)) as writer:
                await world.kept(writer)
        assert world.writes == 1
        assert [(tmp_path / name).read_text() for name in ("one", "two")] == ["x", "x"]

    @pytest.mark.parametrize("record", ["", "{}", "[1]", '{"hook": 1, "result": "", "at": "yesterday"}', "\xff"])
    async def test_tells_again_where_its_record_can_not_be_read(
        self, world: World, tmp_path: Path, record: str
    ) -> None:
        hook = counting(tmp_path / "told")
        world.renew()
        async with world.writing(command=hook) as first:
            await world.kept(first)
        (world.folder / "..data/..told").write_bytes(record.encode("latin-1"))
        async with world.writing(command=hook) as second:
            await until(second.is_current)
        assert (world.writes, (tmp_path / "told").read_text()) == (1, "xx")

    @pytest.mark.parametrize(("moment", "heard"), [("written", "x"), ("telling", "xx"), ("told", "xx")])
    async def test_after_a_kill_before_it_was_kept_that_its_reader_was_told_tells(
        self, world: World, tmp_path: Path, moment: str, heard: str
    ) -> None:
        """The agent that is killed is a process of its own; it kills itself at the very moment."""
        told = tmp_path / "told"
        command = [sys.executable, "-m", "tests.unit.node_agent.files.killed", world.folder, told, moment]
        killed = await asyncio.create_subprocess_exec(*map(str, command))
        try:
            async with asyncio.timeout(60):
                assert await killed.wait() == -signal.SIGKILL
        finally:
            if killed.returncode is None:
                killed.kill()
                await killed.wait()
        before = (world.folder / "..data").readlink()
        bundle = TrustBundle.from_pem(WEB.trust_domain, (world.folder / "root-cert.pem").read_bytes())
        world.cache.trust(BundleSet((bundle,)))
        world.hold(world.written())
        async with world.writing(command=counting(told)) as writer:
            await world.kept(writer)
        assert (world.folder / "..data").readlink() == before, "what was written is not written again"
        assert told.read_text() == heard, "told once more, and not never"
        async with world.writing(command=counting(told)) as writer:
            await until(writer.is_current)
        assert told.read_text() == heard, "and then no more"
