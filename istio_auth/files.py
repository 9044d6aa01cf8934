"""Files that hold state and secrets: written whole or not at all, read with a bound, and kept from other people's eyes.

A write makes a new file in the same folder, syncs it, renames it over the old one, and syncs the folder: after a crash
there is the old content or the new, never half of one. The mode is set before the first byte is written. A reader can
tell "not there" (`MissingError`) from "could not look" (every other error): only if a file is not there may a new one
be made in its place. These functions block: call them in a thread, and not on an event loop.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shlex
import stat
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from istio_auth.errors import ConfigurationError, ConflictError, IstioAuthError, MissingError, NotReady

_EXPOSED = stat.S_IRWXG | stat.S_IRWXO
_LEFTOVER = ".*.tmp"
# Faults that may pass by themselves; all others are for the operator to mend.
_PASSING = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN})


def read_bounded(path: Path, limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes.

    Raises:
        MissingError: there is no such file.
        ConfigurationError: it is no regular file, is too large, or may not be read.
        NotReady: reading failed.
    """
    return _read(path, limit, secret=False)[0]


def read_owned(path: Path, limit: int) -> tuple[bytes, int]:
    """As `read_bounded`, with the user id of the owner, which is that of the very file that was read.

    Raises:
        MissingError: there is no such file.
        ConfigurationError: it is no regular file, is too large, or may not be read.
        NotReady: reading failed.
    """
    return _read(path, limit, secret=False)


def read_secret(path: Path, limit: int) -> bytes:
    """As `read_bounded`, for a file that only its owner may read. The very file that is read is checked.

    Raises:
        MissingError: there is no such file.
        ConfigurationError: others may read it, it is no regular file, is too large, or may not be read.
        NotReady: reading failed.
    """
    return _read(path, limit, secret=True)[0]


def refuse_exposed(path: Path) -> None:
    """Check that group and others have no access to a file with a secret.

    Raises:
        MissingError: there is no such file.
        ConfigurationError: they have access (the message names the command that mends it), or we may not look.
        NotReady: looking failed.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise file_error(error, path, "look at") from error
    _refuse_mode(path, mode, "600")


def atomic_write(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Replace the file durably. It gets exactly this mode, whatever the umask.

    Raises:
        ConfigurationError: the folder is missing, or may not be written to.
        NotReady: the disk is full or failed. The old file is as it was, unless only the sync of the folder failed: then
            the new one is there, and a crash may bring back the old one.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        _write_new(temporary, data, mode)
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise file_error(error, path, "write", absent=ConfigurationError) from error


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of writes that were killed. Only for a process that alone writes into this folder."""
    for leftover in folder.glob(_LEFTOVER):
        with suppress(OSError):
            leftover.unlink()


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable, after a file in it was created, renamed or removed.

    Raises:
        OSError: it could not be opened or synced.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def private_folder(path: Path) -> Path:
    """A folder that only we may enter; made, with its parents, if it is not there.

    Raises:
        ConfigurationError: it is no folder, belongs to somebody else, is open to others, or can not be made.
        NotReady: the disk is full or failed.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            path.mkdir(mode=0o700)
        found = path.stat()
    except OSError as error:
        raise file_error(error, path, "make the folder", absent=ConfigurationError) from error
    if not stat.S_ISDIR(found.st_mode):
        raise ConfigurationError(f"{path} is no folder")
    if found.st_uid != os.geteuid():
        raise ConfigurationError(f"{path} belongs to uid {found.st_uid}, and we are uid {os.geteuid()}")
    _refuse_mode(path, found.st_mode, "700")
    return path


def file_error(
    error: OSError, path: Path, doing: str, *, absent: type[IstioAuthError] = MissingError
) -> IstioAuthError:
    """The error of ours for an error of the file system: the file is not there, must be mended, or the fault may pass.

    Args:
        error: the error of the file system.
        path: the file or folder.
        doing: what was tried, as a verb.
        absent: the error to make if there is nothing of this name.
    """
    message = f"can not {doing} {path}: {os.strerror(error.errno or 0)}"
    if error.errno == errno.ENOENT:
        # A dangling link means a missing mount or a mistake, and not that the file was never there.
        return ConfigurationError(f"{message} (a dangling link)") if path.is_symlink() else absent(message)
    return NotReady(message) if error.errno in _PASSING else ConfigurationError(message)


class FileLock:
    """One process at a time: an advisory lock on a file, held inside the `with` block; it ends with its process.

    Args:
        path: the lock file, made if need be (mode 0600) and never removed: else two processes could each lock one.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def __enter__(self) -> None:
        """Take the lock.

        Raises:
            ConflictError: another process has it.
            ConfigurationError: the file can not be opened.
            NotReady: the disk is full or failed.
        """
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise file_error(error, self._path, "lock", absent=ConfigurationError) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if error.errno in {errno.EWOULDBLOCK, errno.EACCES}:
                raise ConflictError(f"another process holds {self._path}") from error
            raise file_error(error, self._path, "lock") from error
        self._descriptor = descriptor

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _read(path: Path, limit: int, *, secret: bool) -> tuple[bytes, int]:
    try:
        # Not blocking: a FIFO in the place of a file would otherwise block us for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise file_error(error, path, "read") from error
    try:
        found = os.fstat(descriptor)
        mode = found.st_mode
        if not stat.S_ISREG(mode):
            raise ConfigurationError(f"{path} is no regular file")
        if secret:
            _refuse_mode(path, mode, "600")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise file_error(error, path, "read") from error
    finally:
        os.close(descriptor)
    if len(content) > limit:
        raise ConfigurationError(f"{path} is larger than the {limit} bytes allowed")
    return content, found.st_uid


def _write_new(path: Path, data: bytes, mode: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    with os.fdopen(os.open(path, flags, mode & 0o600), "wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _refuse_mode(path: Path, mode: int, wanted: str) -> None:
    if mode & _EXPOSED:
        command = f"chmod {wanted} {shlex.quote(str(path))}"
        raise ConfigurationError(f"{path} is open to others (mode {stat.S_IMODE(mode):04o}): run `{command}`")
