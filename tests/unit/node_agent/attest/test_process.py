"""What is seen of a caller under /proc: of this very process, of one that we start, and of made-up ones."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from istio_auth.door import UnixCaller
from istio_auth.registration import Selector
from node_agent.attest import process
from node_agent.attest.process import ProcessAttestor
from tests.fakes.waiting import until


def caller(pid: int) -> UnixCaller:
    return UnixCaller(os.getuid(), os.getgid(), pid, "main")


def seen(attestor: ProcessAttestor, pid: int) -> set[str]:
    return set(map(str, asyncio.run(attestor.attest(caller(pid)))))


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A program of our own making."""
    return Path(shutil.copy(shutil.which("sleep") or "", tmp_path / "web"))


@pytest.fixture
def running(program: Path) -> Iterator[int]:
    with subprocess.Popen([program, "60"]) as process:
        yield process.pid
        process.kill()


def test_a_process_shows_its_groups_its_executable_and_that_ones_hash() -> None:
    found = seen(ProcessAttestor(), os.getpid())
    executable = Path("/proc/self/exe").readlink()
    digest = hashlib.sha256(Path(sys.executable).resolve().read_bytes()).hexdigest()
    groups = {f"unix:supplementary_gid:{group}" for group in os.getgroups()}
    assert found == {f"unix:path:{executable}", f"unix:sha256:{digest}", *groups}


def test_a_program_that_was_replaced_while_it_runs_keeps_its_hash_and_has_no_path(program: Path, running: int) -> None:
    attestor, digest = ProcessAttestor(), hashlib.sha256(program.read_bytes()).hexdigest()
    assert {f"unix:path:{program}", f"unix:sha256:{digest}"} <= seen(attestor, running)
    other = program.with_name("other")
    other.write_bytes(b"another program")
    other.replace(program)
    found = seen(attestor, running)
    assert f"unix:sha256:{digest}" in found
    assert not any(each.startswith("unix:path:") for each in found)


def test_a_file_is_hashed_once_and_again_when_it_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proc, program = tmp_path / "proc/7", tmp_path / "web"
    proc.mkdir(parents=True)
    program.write_bytes(b"one")
    (proc / "exe").symlink_to(program)
    attestor = ProcessAttestor(tmp_path / "proc")
    counted = list[object]()
    real = hashlib.sha256

    def counting() -> object:
        counted.append(None)
        return real()

    monkeypatch.setattr(hashlib, "sha256", counting)
    for content, times in ((b"one", 1), (b"one", 1), (b"other", 2)):
        if content != program.read_bytes():
            program.write_bytes(content)
        assert f"unix:sha256:{hashlib.new('sha256', content).hexdigest()}" in seen(attestor, 7)
        assert len(counted) == times


async def test_whoever_has_large_programs_read_keeps_nobody_else_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for pid, content in {1: b"known", 2: b"large", 3: b"larger"}.items():
        (tmp_path / str(pid)).mkdir()
        (tmp_path / f"program-{pid}").write_bytes(content)
        (tmp_path / str(pid) / "exe").symlink_to(tmp_path / f"program-{pid}")
    attestor, may_end, begun = ProcessAttestor(tmp_path), threading.Event(), list[object]()
    known = await attestor.attest(UnixCaller(1000, 1000, 1, "main"))
    real = process._sha256

    def slow(file: io.RawIOBase) -> str:
        begun.append(None)
        may_end.wait(60)
        return real(file)

    monkeypatch.setattr(process, "_sha256", slow)
    hostile = [
        asyncio.create_task(attestor.attest(UnixCaller(uid, uid, pid, "main")))
        for uid, pid in ((2000, 2), (3000, 3))
        for _ in range(50)
    ]
    try:
        await until(lambda: begun)
        async with asyncio.timeout(20):
            assert await attestor.attest(UnixCaller(1000, 1000, 1, "main")) == known
        assert not any(each.done() for each in hostile)
    finally:
        may_end.set()
        found = set(await asyncio.gather(*hostile))
    assert len(found) == len(begun) == 2  # each file was read once


@pytest.mark.parametrize("name", ["x\rGroups:\t0", "x\x0bGroups:\t0", "x\x1cGroups:\t0", "x\u2028Groups:0"])
def test_a_process_can_not_give_itself_groups_by_its_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7/status").write_bytes(f"Name:\t{name}\nGroups:\t27 33 \nThreads:\t1\n".encode())
    assert seen(ProcessAttestor(tmp_path), 7) == {"unix:supplementary_gid:27", "unix:supplementary_gid:33"}


def test_what_can_not_be_seen_is_not_observed(tmp_path: Path) -> None:
    assert seen(ProcessAttestor(tmp_path), 7) == set()
    fifo = tmp_path / "8"
    fifo.mkdir()
    (fifo / "exe").mkdir()  # no regular file
    assert seen(ProcessAttestor(tmp_path), 8) == set()


@pytest.mark.parametrize("text", ["unix:path:/usr/bin/web", f"unix:sha256:{'0' * 64}", "unix:supplementary_gid:27"])
def test_a_registration_can_ask_for_what_is_observed(text: str) -> None:
    assert str(Selector.parse(text)) == text
