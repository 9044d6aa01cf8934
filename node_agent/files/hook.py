"""Tells a program that its files have changed: by a command, a signal to a process, or an HTTP call; all bounded.

A command runs without a shell, as the agent's user, in a session of its own that is ended as a whole when its time is
up, and with output that goes to a file: a child that lives on, and holds what it inherited, holds up nobody. Of the
file only the end takes room while the command runs.

A signal goes to the process that a file names, and the file may be stale or lie. So the file must belong to root, to us
or to that process's own user, and the process must have the name that the settings tell, if they do: whoever writes the
file can not have us signal a process of somebody else.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

import aiohttp

from istio_auth.errors import IstioAuthError, NotReady
from istio_auth.files import read_owned
from istio_auth.http_client import plain_reason
from node_agent.attest.proc import status_fields
from node_agent.files.settings import FilesSettings

Hook = Callable[[], Awaitable[str]]
"""Tells; returns what came of it, in a few words, or raises `NotReady`."""

_MAX_OUTPUT = 500  # characters of it that a log line shows, from its end
_MAX_QUOTED = 4 * _MAX_OUTPUT  # bytes that these may be
_MAX_KEPT = 2**20  # bytes of output on the disk
_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # <linux/falloc.h>
_ON_DISK = 512  # bytes of a block, as stat(2) counts them
_LOOK = 0.2  # seconds between two looks at how much it is
_MAX_PID_FILE = 4096
_MAX_NAME = 15  # of a process, as the kernel keeps it
_MAX_DIGITS = 10
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def hook_of(settings: FilesSettings) -> Hook | None:
    """How the settings want it to be told; None if nobody is to be told."""
    ways: dict[str, Hook] = {
        "command": lambda: run_command(settings),
        "signal": lambda: asyncio.to_thread(send_signal, settings),
        "post": lambda: post(settings),
    }
    return ways.get(settings.way)


async def run_command(settings: FilesSettings) -> str:
    """Run the command.

    Raises:
        NotReady: it can not be run, failed, or took too long.
    """
    environment = {"PATH": _PATH, "ISTIO_AUTH_FILES": settings.name, "ISTIO_AUTH_FOLDER": str(settings.folder)}
    with tempfile.TemporaryFile() as output:
        try:
            process = await asyncio.create_subprocess_exec(
                *settings.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            raise NotReady(f"{settings.command[0]} can not be run: {os.strerror(error.errno or 0)}") from error
        try:
            async with asyncio.timeout(settings.timeout.total_seconds()):
                code = await _end(process, output)
        except TimeoutError as error:
            raise NotReady(f"the command did not end within {settings.timeout.total_seconds():g} s") from error
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        if code:
            raise NotReady(f"the command ended with {code}: {_end_of(output.fileno()) or 'it said nothing'}")
        return "the command ended well"


def send_signal(settings: FilesSettings) -> str:
    """Send the signal.

    Raises:
        NotReady: there is no such process, or we may not signal it.
    """
    assert settings.pid_file is not None
    pid, writer = _pid_in(settings.pid_file)
    try:
        process = os.pidfd_open(pid)
    except OSError as error:
        raise NotReady(f"process {pid} of {settings.pid_file}: {os.strerror(error.errno or 0)}") from error
    try:
        # Looked at after it was opened: if it has ended since, no other process of its number is sent anything.
        _refuse_other(settings, pid, writer)
        signal.pidfd_send_signal(process, settings.signal_number)
    except PermissionError as error:
        raise NotReady(
            f"process {pid} was not sent {settings.signal}: it is another user's, for which we need CAP_KILL"
        ) from error
    except OSError as error:
        raise NotReady(f"process {pid} was not sent {settings.signal}: {os.strerror(error.errno or 0)}") from error
    finally:
        os.close(process)
    return f"{settings.signal_number.name} was sent to process {pid}"


async def post(settings: FilesSettings) -> str:
    """Call the HTTP address; anything but a status of 2xx is a failure, redirects too.

    Raises:
        NotReady: it failed, or took too long.
    """
    timeout, address = aiohttp.ClientTimeout(total=settings.timeout.total_seconds()), settings.post_address
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.post(settings.post, allow_redirects=False) as answer,
        ):
            status = answer.status
    except (aiohttp.ClientError, OSError, ValueError, TimeoutError) as error:
        raise NotReady(f"{address} does not answer: {plain_reason(error)}") from error
    if not 200 <= status < 300:
        raise NotReady(f"{address} answered {status}")
    return f"{address} answered {status}"


def _pid_in(path: Path) -> tuple[int, int]:
    """The process that a file names, and the user whose file it is."""
    try:
        content, owner = read_owned(path, _MAX_PID_FILE)
    except IstioAuthError as error:
        raise NotReady(str(error)) from error
    word = content.decode("ascii", errors="replace").partition("\n")[0].strip()  # PostgreSQL writes more below it
    if len(word) > _MAX_DIGITS or not word.isdecimal() or not word.isascii() or int(word) <= 1:
        raise NotReady(f"{path} holds no process number")
    return int(word), owner


def _refuse_other(settings: FilesSettings, pid: int, owner: int) -> None:
    """Make sure that a process is the one that its file means."""
    try:
        fields = status_fields(Path(f"/proc/{pid}"))
    except OSError as error:
        raise NotReady(f"process {pid} can not be looked at: {os.strerror(error.errno or 0)}") from error
    real, _, saved, _ = map(int, fields["Uid"].split())
    if owner not in {0, os.geteuid(), real, saved}:  # whom a user may signal is told by these two (kill(2))
        raise NotReady(
            f"process {pid} is of uid {real}, and {settings.pid_file} belongs to uid {owner}, who may not signal it"
        )
    if settings.process and fields["Name"] != settings.process[:_MAX_NAME]:
        raise NotReady(
            f"process {pid} of {settings.pid_file} is {fields['Name']}, not {settings.process}: the file is out of date"
        )


async def _end(process: asyncio.subprocess.Process, output: IO[bytes]) -> int:
    """Wait for the end; what it says meanwhile does not fill the disk."""
    while True:
        try:
            async with asyncio.timeout(_LOOK):
                return await process.wait()
        except TimeoutError:
            _keep_end(output.fileno())


def _keep_end(file: int) -> None:
    """Of too much output keep only the end; what is written at this moment is not touched (fallocate(2))."""
    found = os.fstat(file)
    if found.st_blocks * _ON_DISK <= _MAX_KEPT:
        return
    without = ctypes.c_long(0), ctypes.c_long(found.st_size - _MAX_QUOTED)
    if ctypes.CDLL(None).fallocate(file, _PUNCH_HOLE | _KEEP_SIZE, *without):
        os.ftruncate(file, 0)  # a file system without holes: rather no last words than a full disk


def _end_of(file: int) -> str:
    return " ".join(_last_bytes(file).decode(errors="replace").split())[-_MAX_OUTPUT:]


def _last_bytes(file: int) -> bytes:
    return os.pread(file, _MAX_QUOTED, max(0, os.fstat(file).st_size - _MAX_QUOTED))
