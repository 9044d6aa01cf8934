"""Who called: learned from the connection itself, before a server behind the door sees a byte.

The kernel says which process is at the other end of a Unix connection (SO_PEERCRED). Process ids are used again, so we
take a handle to the process (pidfd) at once. Code that looks at the process later by its id must call
`check_same_process` after it has looked.
"""

from __future__ import annotations

import errno
import os
import select
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from socket import SO_PEERCRED, SOL_SOCKET
from socket import socket as Socket  # noqa: N812  # a field below is called socket
from typing import TypeAlias

from cryptography import x509

from istio_auth.errors import NotAuthenticated
from istio_auth.spiffe_id import SpiffeID

_SO_PEERPIDFD = 77  # Linux 6.5: a handle to the process that connected, even if its id was used again meanwhile
_CREDENTIALS = struct.Struct("3i")


@dataclass(frozen=True, slots=True)
class TLSCaller:
    """A caller over TLS.

    Args:
        chain: the certificates that were verified, leaf first; empty if none was presented.
        spiffe_id: the identity that they prove; None if no certificate was presented.
        address: host and port, for logs.
    """

    chain: tuple[x509.Certificate, ...]
    spiffe_id: SpiffeID | None
    address: str

    def __str__(self) -> str:
        return f"{self.spiffe_id or 'a caller without certificate'} at {self.address}"


class ProcessHandle:
    """A handle that always means the same process: a pidfd, and the time when the process was started.

    Args:
        pidfd: an open descriptor of the process, which this object owns from now on.
        started: clock ticks from boot to its start (proc(5), field 22 of stat).
    """

    def __init__(self, pidfd: int, started: int) -> None:
        self._pidfd = pidfd
        self.started = started

    @classmethod
    def of(cls, pid: int) -> ProcessHandle:
        """The process that has this id now.

        Raises:
            NotAuthenticated: there is none.
        """
        return _handle(pid, lambda: os.pidfd_open(pid))

    def alive(self) -> bool:
        """Whether the process still runs; False for a closed handle."""
        if self._pidfd < 0:
            return False
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return not poll.poll(0)

    def close(self) -> None:
        """Give the descriptor back."""
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1


@dataclass(frozen=True, slots=True)
class UnixCaller:
    """A process of this machine.

    Args:
        uid: its effective user id when it connected.
        gid: its effective group id when it connected.
        pid: its process id as seen from here; 0 if it lives in a pid namespace that can not be seen from here.
        socket: the name of the listener that it came through; empty for a process that an operator asks about.
        process: the handle that tells whether it is still the same process; None if that can not be seen from here.
    """

    uid: int
    gid: int
    pid: int
    socket: str
    process: ProcessHandle | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(cls, connection: Socket, *, name: str) -> UnixCaller:
        """The caller at the other end of a Unix connection.

        Raises:
            NotAuthenticated: the process has ended already.
            OSError: this is no connected Unix socket.
        """
        raw = connection.getsockopt(SOL_SOCKET, SO_PEERCRED, _CREDENTIALS.size)
        pid, uid, gid = _CREDENTIALS.unpack(raw)
        return cls(uid, gid, pid, name, _handle(pid, lambda: _pidfd(connection, pid)) if pid else None)

    def check_same_process(self) -> None:
        """Check, after looking at anything by the process id, that it was this process all the time.

        Raises:
            NotAuthenticated: it has ended, so its id may be another's by now; or it can not be seen from here.
        """
        if self.process is None:
            raise NotAuthenticated(
                "the calling process lives in a pid namespace that can not be seen from here: an agent in a pod needs "
                "hostPID"
            )
        if not self.process.alive():
            raise NotAuthenticated(f"the calling process {self.pid} has ended")

    def __str__(self) -> str:
        where = f" at socket {self.socket}" if self.socket else ""
        return f"process {self.pid} (uid {self.uid}, gid {self.gid}){where}"


Caller: TypeAlias = TLSCaller | UnixCaller


def _handle(pid: int, opened: Callable[[], int]) -> ProcessHandle:
    try:
        pidfd = opened()
        try:
            handle = ProcessHandle(pidfd, _started(pid))
        except BaseException:
            os.close(pidfd)
            raise
    except (OSError, ValueError) as error:
        raise NotAuthenticated(f"process {pid} has ended") from error
    if not handle.alive():
        handle.close()
        raise NotAuthenticated(f"process {pid} has ended")
    return handle


def _pidfd(connection: Socket, pid: int) -> int:
    try:
        return connection.getsockopt(SOL_SOCKET, _SO_PEERPIDFD)
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:  # older kernels do not know the option
            raise  # the process has ended: whoever has its id now is another
    return os.pidfd_open(pid)


def _started(pid: int) -> int:
    stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    return int(stat.rpartition(")")[2].split()[19])  # the name in parentheses may hold anything, blanks too
