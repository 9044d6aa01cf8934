"""What the service manager hears (sd_notify(3))."""

from __future__ import annotations

import os
import socket
import time
from datetime import timedelta
from pathlib import Path

import pytest

from istio_auth.daemon.notify import Notifier


def listening(address: str) -> socket.socket:
    heard = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    heard.bind(address)
    heard.settimeout(60)
    return heard


@pytest.mark.parametrize("abstract", [False, True])
def test_each_message_arrives_at_either_kind_of_socket(tmp_path: Path, abstract: bool) -> None:
    name = f"@istio-auth-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with listening("\0" + name[1:] if abstract else name) as heard:
        notifier = Notifier({"NOTIFY_SOCKET": name}, os.getpid())
        notifier.ready()
        notifier.alive()
        notifier.stopping()
        notifier.status("serving\nWATCHDOG=trigger")
        assert [heard.recv(100) for _ in range(4)] == [b"READY=1", b"WATCHDOG=1", b"STOPPING=1", b"STATUS=serving"]
        before = time.monotonic_ns() // 1000
        notifier.reloading()
        first, second = heard.recv(100).decode().splitlines()
        assert first == "RELOADING=1"
        assert before <= int(second.removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000


def test_without_a_manager_and_with_one_that_is_gone_nothing_happens(tmp_path: Path) -> None:
    Notifier({}, 1).ready()
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "none")}, 1).ready()


def test_a_manager_that_does_not_read_holds_nobody_up(tmp_path: Path) -> None:
    with listening(str(tmp_path / "notify")):
        notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify")}, 1)
        for _ in range(2000):
            notifier.alive()


@pytest.mark.parametrize(
    ("usec", "pid", "expected"),
    [("2000000", "", 2), ("2000000", "7", 2), ("2000000", "8", None), ("0", "", None), ("", "", None), ("x", "", None)],
)
def test_a_watchdog_counts_only_if_it_is_meant_for_us(usec: str, pid: str, expected: int | None) -> None:
    notifier = Notifier({"WATCHDOG_USEC": usec, "WATCHDOG_PID": pid}, 7)
    assert notifier.watchdog == (timedelta(seconds=expected) if expected else None)


def test_programs_that_we_start_do_not_inherit_the_variables() -> None:
    environment = {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1", "PATH": "/bin"}
    Notifier(environment, 1)
    assert environment == {"PATH": "/bin"}
