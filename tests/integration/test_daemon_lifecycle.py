"""Real processes, real signals: how a daemon lives and ends."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

LONG = 60.0
Start = Callable[..., "Process"]


class Process:
    """A daemon of `tests.fakes.daemon`."""

    def __init__(self, *arguments: str, before: tuple[str, ...] = (), **environment: str) -> None:
        self._process = subprocess.Popen(
            [*before, sys.executable, "-m", "tests.fakes.daemon", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | environment,
            cwd=Path(__file__).parents[2],
        )
        self.pid = self._process.pid

    def line(self) -> str:
        """The next thing that happened to it."""
        assert self._process.stdout
        assert select.select([self._process.stdout], [], [], LONG)[0], "it says nothing"
        return self._process.stdout.readline().decode().strip()

    def send(self, number: int) -> None:
        self._process.send_signal(number)

    def insist(self, number: int) -> None:
        """Send a signal again and again until the process has ended."""
        while self._process.poll() is None:
            self._process.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(0.05)

    def end(self) -> tuple[int, list[str], list[dict[str, object]], str]:
        """Its exit code, what it still said, its log lines, and what else it wrote to stderr."""
        out, err = self._process.communicate(timeout=LONG)
        log = [json.loads(line) for line in err.decode().splitlines() if line.startswith("{")]
        rest = "\n".join(line for line in err.decode().splitlines() if not line.startswith("{"))
        return self._process.returncode, out.decode().splitlines(), log, rest

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[Process] = []

    def run(*arguments: str, before: tuple[str, ...] = (), **environment: str) -> Process:
        started.append(Process(*arguments, before=before, **environment))
        return started[-1]

    yield run
    for process in started:
        process.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """The socket of a service manager, at `notify` in the test's folder."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(str(tmp_path / "notify"))
        heard.settimeout(LONG)
        yield heard


def test_one_that_has_started_but_waits_for_something_does_not_say_that_it_is_ready(start: Start) -> None:
    daemon = start("waits")
    assert daemon.line() == "ready"
    daemon.send(signal.SIGTERM)
    log = daemon.end()[2]
    assert [line["event"] for line in log] == ["started, and not ready yet", "stopping", "stopped"]
    assert log[0]["problems"] == {"part": "nothing yet"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_order_not_ready_first(start: Start, number: int) -> None:
    daemon = start("plain")
    assert daemon.line() == "ready"
    daemon.send(number)
    code, said, log, _ = daemon.end()
    assert code == 0
    assert said == ["stopping ['daemon']", "drained"]
    assert [line["event"] for line in log] == ["ready", "stopping", "stopped"]
    assert log[1]["cause"] == signal.Signals(number).name


@pytest.mark.parametrize("mode", ["slow", "hung", "hung-thread"])
def test_what_does_not_end_in_time_is_ended_and_shows_where_it_hung(start: Start, mode: str) -> None:
    daemon = start(mode, "0.5")
    assert daemon.line() == "ready"
    begun = time.monotonic()
    daemon.send(signal.SIGTERM)
    code, _, _, rest = daemon.end()
    assert code == 1
    assert 0.4 < time.monotonic() - begun < LONG
    assert "most recent call first" in rest
    assert "fakes/daemon.py" in rest or mode != "hung"


def test_a_second_signal_ends_it_at_once(start: Start) -> None:
    daemon = start("slow", "3600")
    assert daemon.line() == "ready"
    daemon.send(signal.SIGTERM)
    assert daemon.line().startswith("stopping")
    daemon.insist(signal.SIGTERM)
    code, said, _, rest = daemon.end()
    assert code == 1
    assert said == []
    assert "a second signal" in rest


def test_a_signal_that_came_twice_in_a_moment_came_once(start: Start) -> None:
    daemon = start("slow", "0.5")
    assert daemon.line() == "ready"
    daemon.send(signal.SIGSTOP)  # whatever comes now comes to it in one moment
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCONT):
        daemon.send(number)
    assert daemon.line().startswith("stopping")
    assert "not gone" in daemon.end()[3]


@pytest.mark.parametrize(("mode", "reason"), [("dies", "a defect"), ("ends", "")])
def test_a_dead_task_ends_the_daemon_in_order_and_with_its_cause(start: Start, mode: str, reason: str) -> None:
    daemon = start(mode)
    code, said, log, _ = daemon.end()
    assert code == 1
    assert said[-1] == "drained"
    died = next(line for line in log if line.get("task") == "worker")
    assert reason in str(died["reason"])
    assert ("exception" in died) == (mode == "dies")


@pytest.mark.parametrize(("mode", "expected"), [("refused", 2), ("port-in-use", 1), ("refused-later", 1)])
def test_the_exit_code_tells_a_wrong_configuration_from_a_failure(start: Start, mode: str, expected: int) -> None:
    code, _, log, rest = start(mode).end()
    assert code == expected
    assert log[-1]["level"] == "error"
    assert mode == "refused-later" or len(log) == 1  # what it died of, and not that it is stopping
    assert "exception" not in log[-1]
    assert rest == ""


def test_a_reload_runs_every_part_and_reports_the_one_that_fails(start: Start) -> None:
    daemon = start("plain")
    assert daemon.line() == "ready"
    for _ in range(2):
        daemon.send(signal.SIGHUP)
        assert daemon.line() == "reloaded"
    daemon.send(signal.SIGTERM)
    code, _, log, _ = daemon.end()
    assert code == 0
    assert [(line["part"], line["level"]) for line in log if "part" in line] == [("bad", "error"), ("file", "info")] * 2


def test_the_service_manager_hears_of_every_step(start: Start, manager: socket.socket, tmp_path: Path) -> None:
    daemon = start("plain", NOTIFY_SOCKET=str(tmp_path / "notify"))
    assert manager.recv(100) == b"READY=1"
    daemon.send(signal.SIGHUP)
    assert manager.recv(100).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
    assert manager.recv(100) == b"READY=1"
    daemon.send(signal.SIGTERM)
    assert manager.recv(100) == b"STOPPING=1"
    assert daemon.end()[0] == 0


def test_the_watchdog_is_fed_by_the_event_loop_and_starves_when_that_hangs(
    start: Start, manager: socket.socket, tmp_path: Path
) -> None:
    watched = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "400000"}
    daemon = start("plain", **watched)
    fed: list[float] = []
    while len(fed) < 3 or fed[-1] - fed[-2] >= 0.4:  # in time, where the machine lets it
        if manager.recv(100) == b"WATCHDOG=1":
            fed.append(time.monotonic())
    daemon.send(signal.SIGTERM)
    assert daemon.end()[0] == 0
    assert b"STOPPING=1" in heard_for(0.0, manager)
    hung = start("hung", **watched)
    assert hung.line() == "ready"
    assert heard_for(1.0, manager).count(b"WATCHDOG=1") <= 1


@pytest.mark.root
def test_as_pid_1_it_ends_in_order_and_leaves_no_zombies(start: Start) -> None:
    alone = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
    daemon = start("plain", "9.5", "orphan", before=alone)
    assert daemon.line() == "ready"
    inside = child_of(daemon.pid)
    assert status(inside)["NSpid"].split()[-1] == "1"
    os.kill(inside, signal.SIGHUP)
    assert daemon.line() == "reloaded"
    wait_until(lambda: not children(inside))
    os.kill(inside, signal.SIGTERM)
    code, said, _, _ = daemon.end()
    assert code == 0
    assert said == ["stopping ['daemon']", "drained"]


@pytest.mark.root
def test_as_pid_1_a_hung_daemon_is_gone_in_time(start: Start) -> None:
    daemon = start("hung", "0.5", before=("unshare", "--pid", "--fork", "--kill-child"))
    assert daemon.line() == "ready"
    os.kill(child_of(daemon.pid), signal.SIGTERM)
    assert daemon.end()[0] == 1


def heard_for(seconds: float, manager: socket.socket) -> list[bytes]:
    heard: list[bytes] = []
    deadline = time.monotonic() + seconds
    while select.select([manager], [], [], max(0.0, deadline - time.monotonic()))[0]:
        heard.append(manager.recv(100))
    return heard


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def child_of(pid: int) -> int:
    (child,) = children(pid)
    return child


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
