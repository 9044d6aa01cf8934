"""Who called: what kernels answer, old and new, and what it is worth."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from istio_auth.door import ProcessHandle, TLSCaller, UnixCaller
from istio_auth.errors import NotAuthenticated
from istio_auth.spiffe_id import SpiffeID
from tests.fakes.descriptors import open_descriptors

PEERCRED, PEERPIDFD = 17, 77


class Kernel(socket.socket):
    """A connection on a kernel of another age: what it answers about the peer's process is up to the test."""

    error: int | None = None
    pid: int | None = None

    def getsockopt(self, level: int, name: int, size: int = 0) -> int | bytes:  # type: ignore[override]  # both forms
        if level == socket.SOL_SOCKET and name == PEERPIDFD and self.error:
            raise OSError(self.error, os.strerror(self.error))
        if not size:
            return super().getsockopt(level, name)
        found = super().getsockopt(level, name, size)
        if name == PEERCRED and self.pid is not None:
            return self.pid.to_bytes(4, sys.byteorder) + found[4:]
        return found


@pytest.fixture
def connection() -> Iterator[Kernel]:
    ours, theirs = socket.socketpair()
    with theirs, Kernel(ours.family, ours.type, 0, ours.detach()) as connection:
        yield connection


@pytest.mark.parametrize("error", [None, errno.ENOPROTOOPT], ids=["new kernel", "old kernel"])
def test_this_process_is_known_on_new_and_old_kernels(connection: Kernel, error: int | None) -> None:
    connection.error = error
    before = open_descriptors("pidfd", "/proc/")
    caller = UnixCaller.of(connection, name="s")
    assert (caller.uid, caller.gid, caller.pid, caller.socket) == (os.geteuid(), os.getegid(), os.getpid(), "s")
    caller.check_same_process()
    assert caller.process is not None
    caller.process.close()
    caller.process.close()
    assert not caller.process.alive()
    with pytest.raises(NotAuthenticated):
        caller.check_same_process()
    assert open_descriptors("pidfd", "/proc/") == before


@pytest.mark.parametrize("error", [errno.ESRCH, errno.EINVAL, errno.ENODATA])
def test_a_kernel_that_says_the_process_has_ended_is_believed(connection: Kernel, error: int) -> None:
    """The id is alive and well, and somebody else's by now: it must not be looked up again."""
    connection.error = error
    with pytest.raises(NotAuthenticated, match="has ended"):
        UnixCaller.of(connection, name="s")
    connection.error = None
    caller = UnixCaller.of(connection, name="s")
    assert caller.process is not None
    caller.process.close()


def test_a_process_that_ends_meanwhile_is_refused_and_nothing_stays_open(connection: Kernel) -> None:
    ended = subprocess.Popen(["true"])
    connection.error, connection.pid = errno.ENOPROTOOPT, ended.pid
    ended.wait(60)
    before = open_descriptors("pidfd", "/proc/")
    with pytest.raises(NotAuthenticated, match=str(ended.pid)):
        UnixCaller.of(connection, name="s")
    assert open_descriptors("pidfd", "/proc/") == before


def test_a_process_that_is_no_more_than_a_zombie_has_ended(connection: Kernel) -> None:
    with subprocess.Popen(["true"], stdout=subprocess.PIPE) as zombie:
        assert zombie.stdout is not None
        assert zombie.stdout.read() == b""  # it has ended, and is not waited for yet
        os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
        connection.error, connection.pid = errno.ENOPROTOOPT, zombie.pid
        before = open_descriptors("pidfd", "/proc/")
        with pytest.raises(NotAuthenticated, match="has ended"):
            UnixCaller.of(connection, name="s")
        assert open_descriptors("pidfd", "/proc/") == before


def test_a_process_of_another_pid_namespace_is_known_by_its_user_alone(connection: Kernel) -> None:
    connection.pid = 0
    caller = UnixCaller.of(connection, name="s")
    assert (caller.uid, caller.pid, caller.process) == (os.geteuid(), 0, None)
    with pytest.raises(NotAuthenticated, match="pid namespace"):
        caller.check_same_process()


def test_the_start_of_a_process_is_read_whatever_its_name_is(connection: Kernel) -> None:
    script = (
        "import sys; open('/proc/self/comm', 'w').write(') R 1 2 (x'); print('named', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as odd:
        assert odd.stdout is not None
        assert odd.stdout.readline() == b"named\n"
        connection.error, connection.pid = errno.ENOPROTOOPT, odd.pid
        caller = UnixCaller.of(connection, name="s")
        assert caller.process is not None
        connection.pid = os.getpid()
        us = UnixCaller.of(connection, name="s")
        assert us.process is not None
        assert caller.process.started >= us.process.started > 0
        for each in (caller, us):
            assert each.process is not None
            each.process.close()
        odd.kill()


def test_a_connection_without_a_process_has_no_caller_to_check() -> None:
    with socket.socket(socket.AF_INET) as plain:
        caller = UnixCaller.of(plain, name="s")  # the kernel answers with process 0 and users that do not exist
        assert (caller.pid, caller.uid) == (0, -1)
        with pytest.raises(NotAuthenticated):
            caller.check_same_process()


def test_a_handle_tells_when_its_process_ends() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        handle = ProcessHandle(os.pidfd_open(process.pid), 1)
        assert handle.alive()
        process.kill()
        process.wait(60)
        assert not handle.alive()
        handle.close()


def test_callers_are_told_in_words() -> None:
    web = SpiffeID.parse("spiffe://cluster.local/web")
    assert str(TLSCaller((), web, "192.0.2.1:5")) == "spiffe://cluster.local/web at 192.0.2.1:5"
    assert str(TLSCaller((), None, "[::1]:5")) == "a caller without certificate at [::1]:5"
    assert str(UnixCaller(7, 8, 9, "s")) == "process 9 (uid 7, gid 8) at socket s"
    assert str(UnixCaller(7, 8, 9, "")) == "process 9 (uid 7, gid 8)"
    handle = ProcessHandle(-1, 5)
    assert UnixCaller(7, 8, 9, "s", handle) == UnixCaller(7, 8, 9, "s")
    assert "ProcessHandle" not in repr(UnixCaller(7, 8, 9, "s", handle))
