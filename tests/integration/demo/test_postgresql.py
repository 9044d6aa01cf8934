"""The demo's PostgreSQL: the machine's own, else that of a package; reached by one user alone; gone with the demo."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import psycopg
import pytest

from deploy.demo import postgresql
from deploy.demo.postgresql import NoDatabase, of_machine, of_package, start_database
from deploy.demo.processes import Processes

FOUND = [each for each in (of_machine, of_package) if each() is not None]
UID = 60002 if os.geteuid() == 0 else None


@pytest.fixture
def folder() -> Iterator[Path]:
    """Not pytest's, whose path is too long for Unix sockets and closed to other users."""
    with TemporaryDirectory(prefix="sql-") as name:
        Path(name).chmod(0o711)
        (Path(name) / "logs").mkdir()
        yield Path(name)


@pytest.mark.parametrize("found", FOUND)
async def test_it_answers_at_its_socket_and_nowhere_else_and_ends_at_once(
    found: Callable[[], Path | None], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if found is of_package:
        monkeypatch.setattr(postgresql, "of_machine", lambda: None)
    async with Processes(folder / "logs") as processes:
        database = await start_database(processes, folder / "sql", user=UID)
        status = database.socket.stat()
        assert status.st_mode & 0o777 == 0o700
        assert status.st_uid == (os.getuid() if UID is None else UID)
        where = f"host={database.socket.parent} user={postgresql.USER} dbname={postgresql.DATABASE}"
        connection = await psycopg.AsyncConnection.connect(where)
        answer = await (await connection.execute("SHOW listen_addresses")).fetchone()
        assert answer == ("",)
    # It has ended although a client was still there, and all that it had is gone.
    assert processes.children[0].process.returncode == 0
    with pytest.raises(psycopg.OperationalError):
        await connection.execute("SELECT 1")
    await connection.close()
    assert not database.socket.exists()


async def test_where_there_is_none_the_reason_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgresql, "of_machine", lambda: None)
    monkeypatch.setattr(postgresql, "of_package", lambda: None)
    async with Processes(folder / "logs") as processes:
        with pytest.raises(NoDatabase, match="no PostgreSQL on this machine"):
            await start_database(processes, folder / "sql", user=UID)
        assert processes.children == []


def test_the_newest_of_several_is_taken(tmp_path: Path) -> None:
    for version in ("9.6", "15", "17"):
        (tmp_path / f"usr/lib/postgresql/{version}/bin").mkdir(parents=True)
        (tmp_path / f"usr/lib/postgresql/{version}/bin/initdb").touch()
    assert postgresql.newest(tmp_path, "usr/lib/postgresql/*/bin/initdb") == tmp_path / "usr/lib/postgresql/17/bin"
