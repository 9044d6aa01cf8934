"""A file source at work: its thread, the TLS contexts that follow it, and what is left of it afterwards."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from istio_auth import TrustBundle, TrustDomain, VerificationError, any_id, client_context, server_context, write_svid
from istio_auth.bundle import BundleSet
from istio_auth.errors import Fault, NotReady
from istio_auth.keys import public_key_of, same_key
from istio_auth.sources import files
from istio_auth.sources.files import FileSource
from istio_auth.sources.memory import MemorySource
from istio_auth.sources.svid_files import SVIDLayout
from istio_auth.system_clock import SystemClock
from istio_auth.verify import verify_chain
from istio_auth.x509_source import X509Context
from tests.fakes.authority import HOUR, FakeAuthority
from tests.fakes.clock import FakeClock
from tests.fakes.processes import run
from tests.fakes.svid_folder import SVIDFolder, generation
from tests.fakes.tls import meet, talk
from tests.fakes.waiting import until

OFTEN, PATIENCE = timedelta(milliseconds=10), timedelta(seconds=60)
LOCAL = TrustDomain("cluster.local")
FIRST, SECOND = generation(1), generation(2)


@pytest.fixture
def threads() -> Iterator[Callable[[], int]]:
    """How many threads of sources there are beyond those before the test."""
    before = _following()
    yield lambda: len(_following() - before)
    assert not _following() - before


def _following() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "istio-auth files"}


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208  # the names are all that is wanted


def snapshots() -> int:
    gc.collect()
    return sum(type(found) is X509Context for found in gc.get_objects())


async def test_everybody_follows_what_is_written(tmp_path: Path) -> None:
    async with FileSource(tmp_path / "certs", interval=OFTEN) as source:
        coming = asyncio.create_task(source.ready(PATIENCE))
        write_svid(tmp_path / "certs", FIRST)
        await coming
        updates = source.updates()
        assert (await anext(updates)).svid == FIRST.svid
        write_svid(tmp_path / "certs", SECOND)
        async with asyncio.timeout(60):
            assert (await anext(updates)).svid == SECOND.svid
        await updates.aclose()


def test_a_program_without_a_loop_waits_as_well(tmp_path: Path) -> None:
    with FileSource(tmp_path, interval=OFTEN) as source:
        changed = threading.Event()
        source.subscribe(changed.set)
        SVIDFolder(tmp_path, SVIDLayout.KUBERNETES_TLS).write(FIRST)
        source.wait_until_ready(PATIENCE)
        assert changed.wait(60)
        assert source.svid() == FIRST.svid


async def test_tls_follows_the_files_and_a_removed_root_is_trusted_no_more(tmp_path: Path) -> None:
    old, new = FakeAuthority(), FakeAuthority()
    with FileSource(tmp_path, interval=OFTEN) as source:
        server = server_context(source, any_id())

        def roots(*authorities: FakeAuthority) -> BundleSet:
            return BundleSet((TrustBundle(LOCAL, tuple(authority.root for authority in authorities)),))

        def client_of(authority: FakeAuthority) -> MemorySource:
            return MemorySource(X509Context((authority.svid("/client"),), roots(old, new)))

        async def rotate(issuer: FakeAuthority, *trusted: FakeAuthority) -> None:
            write_svid(tmp_path, X509Context((issuer.svid("/server"),), roots(*trusted)))
            await until(lambda: source.status().ready and source.x509_context().bundles == roots(*trusted))

        await rotate(old, old)
        talk(*meet(client_context(client_of(old), any_id()), server))
        await rotate(new, old, new)
        talk(*meet(client_context(client_of(old), any_id()), server))
        await rotate(new, new)
        talk(*meet(client_context(client_of(new), any_id()), server))
        _, refusing = meet(client_context(client_of(old), any_id()), server)
        assert isinstance(refusing.refusal, VerificationError)
        assert refusing.refusal.fault is Fault.UNTRUSTED


def test_a_writer_that_is_gone_for_an_hour_is_outlived_until_the_svid_ends(
    tmp_path: Path, authority: FakeAuthority
) -> None:
    clock = FakeClock(authority.now)
    svid = authority.svid("/web", not_before=authority.now, not_after=authority.now + 2 * HOUR)
    context = X509Context((svid,), BundleSet((authority.bundle(),)))
    written = write_svid(tmp_path, context)
    with FileSource(tmp_path, interval=OFTEN, clock=clock) as source:
        server = server_context(source, any_id(), clock=clock)
        client = client_context(MemorySource(context), any_id(), clock=clock)
        written.chain.resolve().unlink()
        clock.advance(HOUR)
        assert "dangling link" in str(source.reload().trouble)
        talk(*meet(client, server))
        clock.advance(HOUR)
        _, refusing = meet(client, server)
        assert isinstance(refusing.refusal, NotReady)
        for word in (svid.id, "has ended", "dangling link", "whoever writes them"):
            assert str(word) in str(refusing.refusal)


class TestNothingIsLeft:
    def test_of_a_thousand_rotations(self, tmp_path: Path, threads: Callable[[], int]) -> None:
        for number, context in enumerate((FIRST, SECOND)):
            write_svid(tmp_path / str(number), context)
        live, fresh = tmp_path / "live", tmp_path / "fresh"
        live.symlink_to("1")
        with FileSource(live, interval=OFTEN) as source:
            source.reload()
            with source._reading:  # its thread reads nothing meanwhile
                before, contexts = descriptors(), snapshots()
            for number in range(1000):
                fresh.symlink_to(str(number % 2))
                fresh.replace(live)
                source.reload()
            assert source.status().updates == 1001
            assert threads() == 1
            with source._reading:
                assert descriptors() <= before
                assert snapshots() <= contexts + 1  # one that the thread may just be comparing

    def test_of_one_that_is_closed_however_long_it_would_wait(self, tmp_path: Path, threads: Callable[[], int]) -> None:
        source = FileSource(tmp_path, interval=timedelta(days=1))
        assert threads() == 1
        source.close()
        source.close()
        assert threads() == 0

    def test_of_one_that_a_subscriber_closes(
        self, tmp_path: Path, threads: Callable[[], int], caplog: pytest.LogCaptureFixture
    ) -> None:
        source = FileSource(tmp_path, interval=OFTEN)
        source.subscribe(source.close)
        thread = source._thread
        assert thread is not None
        write_svid(tmp_path, FIRST)
        thread.join(60)
        assert threads() == 0
        assert [record for record in caplog.records if record.levelname == "ERROR"] == []

    def test_of_one_that_nobody_holds_any_more(
        self, tmp_path: Path, threads: Callable[[], int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(files, "_SETTLE", 86400)
        source = FileSource(tmp_path, interval=timedelta(days=1))
        thread = source._thread
        assert thread is not None
        del source
        gc.collect()
        thread.join(60)
        assert threads() == 0


async def test_what_the_cas_own_command_writes_is_followed(tmp_path: Path) -> None:
    async def issue() -> None:
        where = ("--state-folder", tmp_path / "ca", "--out", tmp_path / "certs", "--force")
        await run("ca-cli", "issue", "--id", "spiffe://cluster.local/web", *where)

    await issue()
    with FileSource(tmp_path / "certs", interval=OFTEN) as source:
        first = source.svid()
        assert verify_chain(first.chain, source.x509_context().bundles, SystemClock().now()) == first.id
        await issue()
        await until(lambda: source.svid() != first)
        assert source.svid().id == first.id


@pytest.mark.parametrize("way", ["by_renaming", "by_swapping"])
def test_a_writer_in_a_hurry_and_readers_in_a_hurry_see_whole_svids(tmp_path: Path, way: str) -> None:
    folder, contexts, over, wrong = SVIDFolder(tmp_path), [FIRST, SECOND], threading.Event(), list[object]()
    chains = [context.svid.chain for context in contexts]

    def write() -> None:
        for number in itertools.count():
            for step in getattr(folder, way)(contexts[number % 2]):
                step()
            if number >= 199 and number % 2 and source.status().updates > 1:
                break
        over.set()

    for step in getattr(folder, way)(SECOND):
        step()
    with FileSource(tmp_path, interval=timedelta(milliseconds=1)) as source:
        writer = threading.Thread(target=write)
        writer.start()
        while not over.is_set():
            source.reload()
            held = source.x509_context()
            number = chains.index(held.svid.chain)
            if way == "by_swapping" and held.bundles != contexts[number].bundles:
                wrong.append(held)
            if not same_key(public_key_of(held.svid.leaf), held.svid.private_key.public_key()):
                wrong.append(held)
        writer.join()
        assert wrong == []
        assert source.status().updates > 1
        source.reload()
        assert source.svid() == SECOND.svid


def test_a_look_that_fails_is_not_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failures = [RuntimeError("a bug")]
    look = FileSource._poll

    def failing(source: FileSource) -> float:
        if failures:
            raise failures.pop()
        return look(source)

    monkeypatch.setattr(FileSource, "_poll", failing)
    monkeypatch.setattr(files, "_PAUSE", 0.01)
    with FileSource(tmp_path, interval=OFTEN) as source:
        write_svid(tmp_path, FIRST)
        source.wait_until_ready(PATIENCE)
    assert "looking at the files failed" in caplog.text
