"""The issuance log: what was answered for is in it, in order, whatever happens to the disk or the process."""

from __future__ import annotations

import base64
import errno
import json
import logging
import os
import stat
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ca.attest import Attested
from ca.issuance_log import FileIssuanceLog, IssuanceRecord
from ca.registry import Grant
from istio_auth.errors import ConfigurationError, NotReady
from istio_auth.registration import Selector
from istio_auth.spiffe_id import SpiffeID, TrustDomain

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)
LOCAL = TrustDomain("cluster.local")
WEB = SpiffeID.for_service_account(LOCAL, "default", "web")
AGENT = SpiffeID.for_agent(LOCAL, "node-1")


def record(serial: int = 0xABC) -> IssuanceRecord:
    attested = Attested(AGENT, "certificate", frozenset({Selector("unix", "uid:1")}), {"serial": "5f"})
    grant = Grant(WEB, timedelta(hours=1), ("web.default.svc",))
    return IssuanceRecord(NOW, "request-1", serial, b"\x30\x00", grant, attested, NOW + timedelta(hours=1))


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def numbers(path: Path) -> list[object]:
    return [line["sequence"] for line in lines(path)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log/issuance.log"


@pytest.fixture
def log(path: Path) -> Iterator[FileIssuanceLog]:
    log = FileIssuanceLog(path)
    yield log
    log.close()


def test_a_record_says_what_was_issued_to_whom_and_on_what_proof(log: FileIssuanceLog, path: Path) -> None:
    (receipt,) = log.append_many([record()])
    assert receipt.sequence == 1
    (line,) = lines(path)
    assert line == {
        "sequence": 1,
        "time": "2030-01-01T12:00:00+00:00",
        "request_id": "request-1",
        "serial": "abc",
        "spiffe_id": str(WEB),
        "dns_names": ["web.default.svc"],
        "not_after": "2030-01-01T13:00:00+00:00",
        "granted_ttl": 3600.0,
        "attested": {
            "spiffe_id": str(AGENT),
            "method": "certificate",
            "selectors": ["unix:uid:1"],
            "details": {"serial": "5f"},
        },
        "certificate": base64.b64encode(b"\x30\x00").decode(),
    }


def test_hostile_text_stays_on_its_line(log: FileIssuanceLog, path: Path) -> None:
    attested = Attested(AGENT, "certificate", details={"address": 'x\n{"sequence": 99}\u2028\ud800'})
    log.append_many([IssuanceRecord(NOW, "a\nb", 1, b"", Grant(WEB), attested, NOW)])
    assert path.read_bytes().count(b"\n") == 1
    assert numbers(path) == [1]


def test_the_numbers_go_on_after_a_restart(path: Path) -> None:
    for start in (1, 4, 7):
        log = FileIssuanceLog(path)
        receipts = log.append_many([record() for _ in range(3)])
        log.close()
        assert [receipt.sequence for receipt in receipts] == [start, start + 1, start + 2]
    assert numbers(path) == list(range(1, 10))


@pytest.mark.usefixtures("log")
def test_the_log_is_for_nobody_else(path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_two_processes_do_not_write_to_one_log(log: FileIssuanceLog, path: Path) -> None:
    with pytest.raises(NotReady):
        FileIssuanceLog(path)
    log.append_many([record()])


@pytest.mark.parametrize(
    "torn",
    [b'{"sequence":4,"ti', b'{"sequence":4}', b"\0" * 5000, b" " * 4096, b'{"sequence":4,"x":\n', b"\xff\xfe\n"],
    ids=["half a line", "no newline", "zeros", "blanks", "half a line and a newline", "no text"],
)
def test_a_torn_last_line_is_moved_aside_and_reported(
    path: Path, torn: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    log = FileIssuanceLog(path)
    log.append_many([record() for _ in range(3)])
    log.close()
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    with caplog.at_level(logging.WARNING):
        log = FileIssuanceLog(path)
    assert path.read_bytes() == whole
    assert path.with_name("issuance.log.torn").read_bytes() == torn + b"\n"
    assert stat.S_IMODE(path.with_name("issuance.log.torn").stat().st_mode) == 0o600
    assert "torn" in caplog.text
    (receipt,) = log.append_many([record()])
    log.close()
    assert receipt.sequence == 4
    assert numbers(path) == [1, 2, 3, 4]


def test_a_torn_first_line_is_moved_aside_too(path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    path.write_bytes(b'{"sequ')
    log = FileIssuanceLog(path)
    log.append_many([record()])
    log.close()
    assert numbers(path) == [1]


def test_a_long_log_is_opened_by_its_end(path: Path) -> None:
    log = FileIssuanceLog(path, sync=False)
    for _ in range(40):
        log.append_many([record() for _ in range(100)])
    log.close()
    assert path.stat().st_size > 1 << 20
    log = FileIssuanceLog(path)
    assert log.append_many([record()])[0].sequence == 4001
    log.close()


@pytest.mark.parametrize("content", [b"hello\nworld\n", b"[]\n", b'{"a":1}\n', (b"\0" * 100 + b"\n") * 12_000])
def test_a_file_that_is_something_else_is_refused_and_left_alone(path: Path, content: bytes) -> None:
    path.parent.mkdir(mode=0o700)
    path.write_bytes(content)
    with pytest.raises(ConfigurationError):
        FileIssuanceLog(path)
    assert path.read_bytes() == content


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    for wrong in (tmp_path, Path("/dev/full")):
        with pytest.raises(ConfigurationError):
            FileIssuanceLog(wrong)


class Disk:
    """Stands between the log and its disk: counts, holds and fails on request."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.syncs = 0
        self.before_sync: Callable[[], None] = lambda: None
        self.room: int | None = None  # how many bytes can still be written
        self._write, self._sync = os.write, os.fdatasync
        monkeypatch.setattr(os, "write", self.write)
        monkeypatch.setattr(os, "fdatasync", self.fdatasync)

    def write(self, descriptor: int, content: bytes) -> int:
        if self.room is None:
            return self._write(descriptor, content)
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        content = content[: self.room]
        self.room -= len(content)
        return self._write(descriptor, content)

    def fdatasync(self, descriptor: int) -> None:
        self.before_sync()
        self._sync(descriptor)
        self.syncs += 1


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def test_a_batch_is_durable_before_its_receipts_and_takes_one_sync(log: FileIssuanceLog, disk: Disk) -> None:
    assert len(log.append_many([record() for _ in range(50)])) == 50
    assert disk.syncs == 1


def test_without_sync_nobody_waits_for_the_disk(path: Path, disk: Disk) -> None:
    log = FileIssuanceLog(path, sync=False)
    log.append_many([record()])
    log.close()
    assert disk.syncs == 0
    assert numbers(path) == [1]


def test_those_who_come_during_a_sync_share_the_next_one(log: FileIssuanceLog, path: Path, disk: Disk) -> None:
    entered, gate = threading.Event(), threading.Event()

    def hold() -> None:
        entered.set()
        assert gate.wait(30)

    disk.before_sync = hold
    with ThreadPoolExecutor(9) as threads:
        first = threads.submit(log.append_many, [record()])
        assert entered.wait(30)
        others = [threads.submit(log.append_many, [record()]) for _ in range(8)]
        while log._written.sequence < 9:  # all of them have written, and that is noted
            threading.Event().wait(0.001)
        assert not first.done()
        gate.set()
        sequences = [future.result(30)[0].sequence for future in (first, *others)]
    assert sorted(number or 0 for number in sequences) == list(range(1, 10))
    assert numbers(path) == list(range(1, 10))
    assert disk.syncs == 2


@pytest.mark.parametrize("room", [0, 1, 300, 500])
def test_on_a_full_disk_nothing_is_recorded_by_halves_and_it_says_so(
    log: FileIssuanceLog, path: Path, disk: Disk, room: int
) -> None:
    log.append_many([record()])
    whole = path.read_bytes()
    assert log.ready() is None
    disk.room = room
    with pytest.raises(NotReady):
        log.append_many([record(), record()])
    assert path.read_bytes() == whole
    assert log.ready() is not None
    disk.room = None
    assert log.append_many([record()])[0].sequence == 2
    assert log.ready() is None
    assert numbers(path) == [1, 2]


def test_a_log_that_nobody_writes_to_finds_out_that_the_disk_has_room_again(
    log: FileIssuanceLog, path: Path, disk: Disk
) -> None:
    log.append_many([record()])
    whole = path.read_bytes()
    disk.room = 10
    with pytest.raises(NotReady):
        log.append_many([record()])
    disk.room = 100
    log.probe()
    assert log.ready() is not None
    disk.room = None
    log.probe()
    assert log.ready() is None
    assert path.read_bytes() == whole


def test_when_the_disk_fails_all_that_was_not_durable_is_lost_together(
    log: FileIssuanceLog, path: Path, disk: Disk
) -> None:
    log.append_many([record()])
    entered, gate = threading.Event(), threading.Event()

    def fail() -> None:
        disk.before_sync = lambda: None  # the next one would work, but what it is to save is gone
        entered.set()
        assert gate.wait(30)
        raise OSError(errno.EIO, "Input/output error")

    disk.before_sync = fail
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(log.append_many, [record()])
        assert entered.wait(30)
        second = threads.submit(log.append_many, [record()])
        while len(path.read_bytes().splitlines()) < 3:
            threading.Event().wait(0.001)
        gate.set()
        for future in (first, second):
            with pytest.raises(NotReady):
                future.result(30)
    assert numbers(path) == [1]
    assert log.ready() is not None
    assert log.append_many([record()])[0].sequence == 2
    assert numbers(path) == [1, 2]


def test_half_a_line_that_could_not_be_cut_off_is_cut_off_before_the_next(
    log: FileIssuanceLog, path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_descriptor: int, _size: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    disk.room = 100
    with monkeypatch.context() as stuck:
        stuck.setattr(os, "ftruncate", fail)
        with pytest.raises(NotReady):
            log.append_many([record()])
    assert path.stat().st_size == 100
    disk.room = None
    assert log.append_many([record()])[0].sequence == 1
    assert numbers(path) == [1]


def test_where_a_record_is_not_required_a_full_disk_is_a_loud_warning(
    path: Path, disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    log = FileIssuanceLog(path, required=False)
    disk.room = 10
    receipts = log.append_many([record(), record()])
    assert [receipt.sequence for receipt in receipts] == [None, None]
    assert log.unrecorded == 2
    assert log.ready() is None
    assert [entry.levelno for entry in caplog.records] == [logging.CRITICAL]
    disk.room = None
    assert log.append_many([record()])[0].sequence == 1
    log.close()


def test_after_a_rename_the_numbers_go_on_in_a_new_file_and_over_a_restart(log: FileIssuanceLog, path: Path) -> None:
    log.append_many([record() for _ in range(3)])
    path.rename(path.with_name("issuance.log.1"))
    log.append_many([record()])
    log.reopen()
    log.reopen()  # nothing to do
    assert numbers(path.with_name("issuance.log.1")) == [1, 2, 3, 4]
    assert lines(path) == [{"continues": 4}]
    log.close()
    restarted = FileIssuanceLog(path)
    assert restarted.append_many([record()])[0].sequence == 5
    restarted.close()
    log._descriptor = os.open("/dev/null", os.O_RDONLY)  # for the fixture to close
