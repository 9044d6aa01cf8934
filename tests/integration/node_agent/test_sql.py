"""SQL through sidecars: plain PostgreSQL at both ends, mutual TLS between real Envoys that a real agent serves."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest
from psycopg_pool import AsyncConnectionPool

from deploy.demo.envoy import Envoy, start_envoy
from deploy.demo.postgresql import DATABASE, USER, Database, start_database
from deploy.demo.processes import Processes, run
from istio_auth.registration import Registration
from node_agent.config import SocketSettings
from tests.fakes.ca import CAServer
from tests.fakes.certificate_client import FakeCA
from tests.fakes.clock import FakeClock
from tests.fakes.running_agent import RunningAgent, registration
from tests.fakes.waiting import until

NAMES = ("db", "web", "stranger")
ROTATIONS = 5


class World:
    """A database with its sidecar, and sidecars of its clients."""

    def __init__(self, folder: Path, processes: Processes, agent: RunningAgent, database: Database) -> None:
        self.folder, self.processes, self.agent, self.database = folder, processes, agent, database
        self._numbers = itertools.count()

    async def sidecar(self, name: str, *flags: str) -> Envoy:
        """A sidecar as `node-agent sidecar-config` writes it."""
        folder = self.folder / f"{name}-{next(self._numbers)}"
        folder.mkdir()
        own = ("--id", identity(name), "--agent-socket", self.folder / f"{name}.sock")
        admin = ("--admin", f"unix:{folder / 'admin.sock'}")
        command: list[str | Path] = [
            Path(sys.executable).with_name("node-agent"),
            "sidecar-config",
            *own,
            *admin,
            *flags,
        ]
        envoy = await start_envoy(self.processes, folder.name, json.loads(await run(command)), folder)
        await envoy.wait_ready()
        return envoy

    async def server(self, *allow: str) -> tuple[Envoy, int]:
        """The sidecar of the database, and its port."""
        allowed = itertools.chain.from_iterable(("--allow", identity(name)) for name in allow)
        where = f"127.0.0.1:0=unix:{self.database.socket}"
        envoy = await self.sidecar("db", "--inbound", where, "--protocol", "tcp", *allowed)
        (port,) = (await envoy.ports()).values()
        return envoy, port

    async def client(self, name: str, server: int, *, expect: str = "db", listen: str = "127.0.0.1:0") -> Envoy:
        """The sidecar of a client."""
        return await self.sidecar(name, "--upstream", f"db/tcp={listen}->127.0.0.1:{server},{identity(expect)}")

    async def rotate(self, number: int, *sidecars: Envoy) -> None:
        """Have each sidecar present another certificate."""
        before = [await each.serial_numbers() for each in sidecars]
        self.agent.server.register(**rows(number))
        async with asyncio.timeout(60):
            for each, old in zip(sidecars, before, strict=True):
                while not (now := await each.serial_numbers()) or now & old:  # noqa: ASYNC110  # Envoy tells no event
                    await asyncio.sleep(0.02)


def identity(name: str) -> str:
    return f"spiffe://cluster.local/{name}"


def rows(rotation: int) -> dict[str, Registration]:
    """A registration for each socket; another rotation calls for another certificate."""
    found = {name: registration(f"/{name}", f"socket:{name}") for name in NAMES}
    return {
        name: Registration(row.spiffe_id, row.selectors, dns_names=(f"rotation-{rotation}.test",))
        for name, row in found.items()
    }


@pytest.fixture
def folder() -> Iterator[Path]:
    """Not pytest's, whose path is too long for Unix sockets and closed to other users."""
    with tempfile.TemporaryDirectory(prefix="sql-") as name:
        Path(name).chmod(0o711)
        (Path(name) / "logs").mkdir()
        yield Path(name)


@pytest.fixture
async def world(folder: Path) -> AsyncIterator[World]:
    clock = FakeClock(datetime.now(UTC))
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(CAServer(FakeCA(clock)))
        server.register(**rows(0))
        sockets = tuple(SocketSettings(folder / f"{name}.sock", name, "0600") for name in NAMES)
        agent = RunningAgent(server, folder, clock, socket=sockets)
        agent.give_token()
        await stack.enter_async_context(agent)
        await agent.served(*(f"/{name}" for name in NAMES))
        processes = await stack.enter_async_context(Processes(folder / "logs"))
        database = await start_database(processes, folder / "db", user=os.getuid() or None)
        yield World(folder, processes, agent, database)


async def asked(envoy: Envoy, **settings: str) -> str:
    """What the database answers through a sidecar."""
    (port,) = (await envoy.ports()).values()
    async with await psycopg.AsyncConnection.connect(conninfo(port), **settings) as connection:  # type: ignore[arg-type]  # by name
        (answer,) = await (await connection.execute("SELECT 'here'")).fetchone() or ("",)
    return str(answer)


def conninfo(port: int) -> str:
    return f"host=127.0.0.1 port={port} user={USER} dbname={DATABASE} sslmode=disable gssencmode=disable"


async def counter(envoy: Envoy, name: str) -> int:
    return sum((await envoy.counters(name.replace(".", r"\."))).values())


async def grows(envoy: Envoy, name: str, since: int) -> None:
    async with asyncio.timeout(60):
        while await counter(envoy, name) <= since:  # noqa: ASYNC110  # Envoy tells no event
            await asyncio.sleep(0.02)


async def test_queries_transactions_and_pools_live_through_rotations_without_an_error(world: World) -> None:
    server, place = await world.server("web")
    client = await world.client("web", place)
    (port,) = (await client.ports()).values()
    stop, done = asyncio.Event(), dict.fromkeys(("alone", "transaction", "pool"), 0)

    async def each_on_its_own() -> None:
        while not stop.is_set():
            assert await asked(client) == "here"
            done["alone"] += 1

    async def in_one_transaction() -> None:
        async with await psycopg.AsyncConnection.connect(conninfo(port)) as connection:
            await connection.execute("CREATE TEMPORARY TABLE seen (number integer)")
            while not stop.is_set():
                await connection.execute("INSERT INTO seen VALUES (1)")
                done["transaction"] += 1
                await asyncio.sleep(0.02)
            await connection.commit()
            found = await (await connection.execute("SELECT count(*) FROM seen")).fetchone()
            assert found == (done["transaction"],)

    async def from_a_pool(pool: AsyncConnectionPool) -> None:
        while not stop.is_set():
            async with pool.connection() as connection:
                await connection.execute("SELECT pg_sleep(0.05)")
            done["pool"] += 1

    async with pooled(port) as pool, asyncio.TaskGroup() as group:
        for each in (each_on_its_own(), in_one_transaction(), from_a_pool(pool)):
            group.create_task(each)
        for number in range(1, ROTATIONS + 1):
            await world.rotate(number, server, client)
            before = dict(done)
            await until(lambda before=before: all(done[name] > before[name] + 1 for name in done))  # type: ignore[misc]  # now
        stop.set()
    assert await counter(server, "ssl.fail_verify_san") == 0
    assert await counter(server, "ssl.handshake") >= done["alone"]


@asynccontextmanager
async def pooled(port: int) -> AsyncIterator[AsyncConnectionPool]:
    async with AsyncConnectionPool(conninfo(port), min_size=2, max_size=2, open=False) as pool:
        yield pool


async def test_a_stranger_is_refused_by_the_servers_sidecar_which_says_why_until_it_is_allowed(world: World) -> None:
    server, place = await world.server("web")
    stranger = await world.client("stranger", place)
    before = await counter(server, "ssl.fail_verify_san")
    with pytest.raises(psycopg.OperationalError, match="closed the connection"):
        await asked(stranger)
    await grows(server, "ssl.fail_verify_san", before)
    await until(lambda: "SAN_matcher" in server.child.output.read_text())
    assert await asked(await world.client("web", place)) == "here"
    _, mended = await world.server("web", "stranger")
    assert await asked(await world.client("stranger", mended)) == "here"


async def test_a_client_believes_no_server_of_another_identity(world: World) -> None:
    _, place = await world.server("web")
    misled = await world.client("web", place, expect="stranger")
    with pytest.raises(psycopg.OperationalError, match="closed the connection"):
        await asked(misled)
    await grows(misled, "ssl.fail_verify_san", 0)
    assert await asked(await world.client("web", place)) == "here"


async def test_a_client_that_asks_for_tls_of_its_own_hears_that_there_is_none(world: World) -> None:
    """What the guide says of `sslmode`, and that over a Unix socket it need not be said."""
    _, place = await world.server("web")
    client = await world.client("web", place)
    assert await asked(client, sslmode="prefer") == "here"
    with pytest.raises(psycopg.OperationalError, match="server does not support SSL"):
        await asked(client, sslmode="require")
    (world.folder / "pg").mkdir()
    await world.client("web", place, listen=f"unix:{world.folder}/pg/.s.PGSQL.5432")
    where = f"host={world.folder}/pg user={USER} dbname={DATABASE} sslmode=require"
    async with await psycopg.AsyncConnection.connect(where) as connection:
        assert await (await connection.execute("SELECT 1")).fetchone() == (1,)
