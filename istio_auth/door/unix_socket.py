"""Unix sockets for a daemon: a stale one is replaced, one in use is left alone; and private ones for our own use."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import socket
import stat
import tempfile
import time
from pathlib import Path

from istio_auth.errors import ConfigurationError, NotReady

MAX_PATH_BYTES = 107  # sun_path is 108 bytes with its NUL (unix(7))
BACKLOG = 1024
_PRIVATE = "istio-auth-door-"
_JUST_MADE = 60.0  # seconds; a younger folder may be about to be locked


def listening_socket(path: Path, mode: int) -> socket.socket:
    """A listening socket at a path.

    Args:
        path: where it shall be; a socket there that nobody listens on is removed.
        mode: the permissions of its file. Nobody can connect before they are set.

    Raises:
        ConfigurationError: the path is too long, something else than a socket is there, or its folder is missing or
            may not be written to.
        NotReady: another process listens there.
    """
    check_path(path)
    _clear(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.setblocking(False)
        listener.bind(str(path))
        path.chmod(mode)  # before listen(): until then every connect is refused
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        why = f"there is no folder {path.parent}" if isinstance(error, FileNotFoundError) else error.strerror
        raise ConfigurationError(f"can not listen at {path}: {why}") from error
    return listener


def close_listener(listener: asyncio.Server) -> None:
    """Stop listening. Connections that the loop has accepted already still reach their protocols.

    `asyncio.Server.close` alone would leave them open without a protocol (Python 3.11 and some later releases).
    """
    loop = listener.get_loop()
    for listening in listener.sockets:
        loop.remove_reader(listening.fileno())
        with socket.socket(fileno=os.dup(listening.fileno())) as twin:  # not every loop's own sockets can do this
            twin.shutdown(socket.SHUT_RDWR)
    loop.call_soon(listener.close)


def check_path(path: Path) -> None:
    """Check that a path is short enough for a Unix socket.

    Raises:
        ConfigurationError: it is too long.
    """
    if (size := len(os.fsencode(path))) > MAX_PATH_BYTES:
        raise ConfigurationError(f"{path}: {size} bytes are too long for a Unix socket, {MAX_PATH_BYTES} are allowed")


class PrivateFolder:
    """A folder of mode 0700 for sockets between parts of one process; locked for as long as it is in use.

    Args:
        parent: where to make it; the machine's folder for temporary files by default.

    Raises:
        ConfigurationError: it can not be made.
    """

    def __init__(self, parent: Path | None = None) -> None:
        try:
            self.path = Path(tempfile.mkdtemp(prefix=_PRIVATE, dir=parent))
            self._descriptor = _locked(self.path)
        except OSError as error:
            raise ConfigurationError(f"no private folder in {parent or tempfile.gettempdir()}: {error}") from error
        self._owner = os.getpid()

    def socket_path(self, name: str) -> Path:
        """The path of a socket in this folder.

        Raises:
            ConfigurationError: it is too long for a socket; the folder is of no use then, and is removed.
        """
        path = self.path / name
        try:
            check_path(path)
        except ConfigurationError:
            self.remove()
            raise
        return path

    def remove(self) -> None:
        """Remove the folder with all that is in it. May be called again."""
        if os.getpid() == self._owner and self._descriptor is not None:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._descriptor)
            self._descriptor = None


def sweep_private_folders(parent: Path | None = None) -> None:
    """Remove the private folders that killed processes of this user left behind: old ones that nobody has locked."""
    for path in Path(parent or tempfile.gettempdir()).glob(f"{_PRIVATE}*"):
        with contextlib.suppress(OSError):
            found = path.lstat()
            if found.st_uid != os.geteuid() or time.time() - found.st_mtime < _JUST_MADE:
                continue
            if (descriptor := _locked(path)) is not None:
                shutil.rmtree(path, ignore_errors=True)
                os.close(descriptor)


def _locked(folder: Path) -> int | None:
    """A descriptor of the folder, which is locked until it is closed; None if somebody else has locked it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def connect_under_a_name(path: Path) -> tuple[socket.socket, str]:
    """Connect to a socket of ours, from a random name that nobody can guess.

    Returns:
        the connected socket, and its name in the abstract namespace (unix(7)).

    Raises:
        BlockingIOError: too many connections wait there already; try again.
        NotReady: nobody listens there.
    """
    name = secrets.token_hex(16)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)
        connection.bind(f"\0{name}")
        connection.connect(str(path))
    except BlockingIOError:
        connection.close()
        raise
    except OSError as error:
        connection.close()
        raise NotReady(f"the private server does not take a connection: {error.strerror}") from error
    return connection, name


def _clear(path: Path) -> None:
    try:
        is_socket = stat.S_ISSOCK(path.lstat().st_mode)
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigurationError(f"can not listen at {path}: {error.strerror}") from error
    if not is_socket:
        raise ConfigurationError(f"{path} exists and is no socket; it is left alone")
    if _somebody_listens(path):
        raise NotReady(f"{path}: another process listens there")
    with contextlib.suppress(FileNotFoundError):
        path.unlink()


def _somebody_listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        return probe.connect_ex(str(path)) not in (errno.ECONNREFUSED, errno.ENOENT)
