"""SQL without TLS to a sidecar on loopback: statements on connections of their own, and one transaction that stays."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

import psycopg

from deploy.demo.client import CallFailed
from deploy.demo.layout import LOOPBACK
from deploy.demo.postgresql import DATABASE, USER
from deploy.demo.report import Finding

_PAUSE = 0.05
# TLS is the sidecar's business: a client that asks for it is told by PostgreSQL that there is none.
_CONNECTION = f"host={LOOPBACK} user={USER} dbname={DATABASE} sslmode=disable gssencmode=disable connect_timeout=10"


async def ask(port: int, statement: str = "SHOW server_version") -> str:
    """What the database answers to one statement on a connection of its own.

    Raises:
        CallFailed: it does not.
    """
    try:
        async with await psycopg.AsyncConnection.connect(_CONNECTION, port=port) as connection:
            found = await (await connection.execute(statement)).fetchone()
    except psycopg.Error as error:
        raise CallFailed(" ".join(str(error).split())) from error
    return str(found[0]) if found else ""


class Transaction:
    """One transaction that adds a row again and again; the rows are gone with its connection.

    Args:
        port: where the database is found.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._end = asyncio.Event()
        self._task: asyncio.Task[tuple[int, int]]

    async def __aenter__(self) -> Self:
        """Begin."""
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def finding(self) -> Finding:
        """End it; what came of it."""
        self._end.set()
        name = "one SQL transaction that was open all the while"
        try:
            added, kept = await self._task
        except psycopg.Error as error:
            return Finding(name, "FAILED", " ".join(str(error).split()), holds=False)
        return Finding(name, "passed", f"{kept} rows were added, then committed", holds=kept == added > 0)

    async def _run(self) -> tuple[int, int]:
        """How many rows were added, and how many are there after the end."""
        added = 0
        async with await psycopg.AsyncConnection.connect(_CONNECTION, port=self._port) as connection:
            await connection.execute("CREATE TEMPORARY TABLE seen (number integer) ON COMMIT PRESERVE ROWS")
            while not self._end.is_set():
                await connection.execute("INSERT INTO seen VALUES (%s)", (added,))
                added += 1
                await asyncio.sleep(_PAUSE)
            await connection.commit()
            found = await (await connection.execute("SELECT count(*) FROM seen")).fetchone()
        return added, found[0] if found else 0
