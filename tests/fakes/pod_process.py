"""A process that is in a pod as far as the kernel tells, and one that gets the id of another that has ended. Root only.

As a program it is that other one: it calls a socket by a process that then ends, gives its id to a process in the given
control group, says so, and passes on what comes in at a socket of its own: `SOCKET RELAY CONTROL-GROUP`.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import shutil
import signal
import socket
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MOUNTED = Path("/sys/fs/cgroup")
_CLONE3 = 435  # x86-64 and AArch64
_FIELDS = "flags pidfd child_tid parent_tid exit_signal stack stack_size tls set_tid set_tid_size cgroup"


@contextmanager
def pod_group(uid: str) -> Iterator[Path]:
    """A control group as a kubelet and a runtime make them for a container of a pod; gone afterwards."""
    hierarchy = _MOUNTED / "pids" if (_MOUNTED / "pids").is_dir() else _MOUNTED  # version 1, or 2
    group = hierarchy / f"kubepods/burstable/pod{uid}/{uuid.uuid4().hex * 2}"
    group.mkdir(parents=True)
    try:
        yield group
    finally:
        for each in (group, *group.parents[:3]):
            with contextlib.suppress(OSError):  # others may be in those above
                each.rmdir()


class _Arguments(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in _FIELDS.split()]  # as ctypes wants it


def fork_as(pid: int) -> int:
    """As `os.fork`, and the child has this id (clone3(2))."""
    wanted = (ctypes.c_int * 1)(pid)
    arguments = _Arguments(exit_signal=signal.SIGCHLD, set_tid=ctypes.addressof(wanted), set_tid_size=1)
    libc = ctypes.CDLL(None, use_errno=True)
    child = int(libc.syscall(_CLONE3, ctypes.byref(arguments), ctypes.sizeof(arguments)))
    if child < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return child


def _ended_caller(connection: socket.socket, path: str) -> int:
    """Connect by a process of its own, which ends once the other end has spoken; its id."""
    if (pid := os.fork()) == 0:
        connection.connect(path)
        connection.recv(1, socket.MSG_PEEK)  # it was let in
        os._exit(0)
    os.waitpid(pid, 0)
    return pid


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
    writer.close()


async def _relay(path: str, connection: socket.socket) -> None:
    inner_reader, inner_writer = await asyncio.open_unix_connection(sock=connection)

    async def called(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.gather(_pass_on(reader, inner_writer), _pass_on(inner_reader, writer))

    server = await asyncio.start_unix_server(called, path)
    print("ready", flush=True)
    await server.serve_forever()


def main(path: str, relay: str, group: str) -> None:
    """What the program does."""
    connection = socket.socket(socket.AF_UNIX)
    pid = _ended_caller(connection, path)
    if fork_as(pid) == 0:
        Path(group, "cgroup.procs").write_text("0")
        os.execv(shutil.which("sleep") or "", ["sleep", "60"])  # noqa: S606  # no shell is wanted
    print(pid, flush=True)
    asyncio.run(_relay(relay, connection))


if __name__ == "__main__":
    main(*sys.argv[1:])
