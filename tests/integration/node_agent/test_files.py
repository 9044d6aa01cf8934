"""Software that reads files, over a running agent: real PostgreSQL and real nginx, through many rotations."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest

from istio_auth import any_id, client_context, write_svid
from istio_auth.bundle import BundleSet
from istio_auth.peer import peer_chain
from istio_auth.registration import Registration, Selector
from istio_auth.sources.memory import MemorySource
from istio_auth.spiffe_id import SpiffeID
from istio_auth.x509_source import X509Context
from node_agent.files.settings import FilesSettings
from tests.fakes import postgresql
from tests.fakes.authority import FakeAuthority
from tests.fakes.ca import CAServer
from tests.fakes.certificate_client import FakeCA
from tests.fakes.clock import FakeClock
from tests.fakes.nginx import nginx, program
from tests.fakes.running_agent import RunningAgent
from tests.fakes.waiting import until

ROTATIONS = 5
CLIENT = SpiffeID.parse("spiffe://cluster.local/client")


CLOCK = FakeClock(datetime.now(UTC))


@pytest.fixture
async def server() -> AsyncIterator[CAServer]:
    async with CAServer(FakeCA(CLOCK)) as server:
        yield server


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that other users may enter, as pytest's own is not."""
    with tempfile.TemporaryDirectory(prefix="files-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def agent_with(server: CAServer, folder: Path, *files: FilesSettings) -> RunningAgent:
    agent = RunningAgent(server, folder, CLOCK, files=files)
    agent.give_token()
    return agent


def rows(*names: str, rotation: int = 0) -> dict[str, Registration]:
    """A registration for each folder; another rotation calls for another certificate."""
    return {
        name: Registration(
            SpiffeID.parse(f"spiffe://cluster.local/{name}"),
            frozenset({Selector("files", name)}),
            dns_names=("localhost", f"rotation-{rotation}.test"),
        )
        for name in names
    }


async def rotate(agent: RunningAgent, number: int, *names: str) -> None:
    """Have other certificates written, and their readers told."""
    before = [writer.state.svid for writer in agent.agent.workloads.files]
    agent.server.register(**rows(*names, rotation=number))
    await until(lambda: all(writer.state.svid not in before for writer in agent.agent.workloads.files))
    await until(lambda: all(writer.state.trouble is None for writer in agent.agent.workloads.files))


async def written(agent: RunningAgent) -> None:
    await until(lambda: all(writer.state.svid is not None for writer in agent.agent.workloads.files))


if postgresql.INSTALLED:

    async def test_sql_runs_through_rotations_on_both_sides_without_an_error(server: CAServer, place: Path) -> None:
        data = place / "data"
        database = FilesSettings(
            "db",
            place / "db",
            key_mode="0640" if os.geteuid() == 0 else "0600",
            group=str(postgresql.GROUP) if os.geteuid() == 0 else "",
            signal="HUP",
            pid_file=data / "postmaster.pid",
        )
        client = FilesSettings("client", place / "client")
        server.register(**rows("db", "client"))
        async with agent_with(server, place, database, client) as agent:
            await written(agent)
            data.mkdir(mode=0o700)
            os.chown(data, postgresql.GROUP, postgresql.GROUP)
            with ExitStack() as stack:
                port = await asyncio.to_thread(stack.enter_context, postgresql.postgresql_over(place / "db", data=data))
                stop, serials = asyncio.Event(), set[int]()
                async with asyncio.TaskGroup() as group:
                    asking = group.create_task(ask_on_and_on(port, place / "client", stop, serials))
                    await until(lambda: serials)
                    for number in range(1, ROTATIONS + 1):
                        await rotate(agent, number, "db", "client")
                        await until(lambda known=number: len(serials) > known)  # type: ignore[misc]  # now
                    stop.set()
                assert asking.result() > ROTATIONS, "queries, none of which failed"
                assert len(serials) > ROTATIONS, "PostgreSQL has seen each certificate of the client"
                told = next(w.state.told for w in agent.agent.workloads.files if w.settings is database)
                assert told is not None
                assert database.signal in told.result

                stranger = FakeAuthority(now=CLOCK.now())
                with pytest.raises(psycopg.OperationalError, match="unknown ca"):
                    await query(port, foreign(stranger, server, place / "stranger"))
                await query(port, place / "client")


async def ask_on_and_on(port: int, folder: Path, stop: asyncio.Event, serials: set[int]) -> int:
    """Queries, each on a connection of its own; how many there were. None fails for good."""
    count = 0
    while not stop.is_set():
        try:
            serials.add(await query(port, folder))
        except psycopg.OperationalError as error:
            # libpq opens certificate and key one after the other, and all files were swapped in between.
            if "key values mismatch" not in str(error):
                raise
            serials.add(await query(port, folder))
        count += 1
    return count


async def query(port: int, folder: Path) -> int:
    """By which certificate PostgreSQL knows us."""
    connection = await psycopg.AsyncConnection.connect(
        f"host=localhost port={port} user=web dbname=postgres connect_timeout=60",
        sslmode="verify-ca",  # the CA of this test puts no DNS names into certificates
        sslcert=str(folder / "cert-chain.pem"),
        sslkey=str(folder / "key.pem"),
        sslrootcert=str(folder / "root-cert.pem"),
    )
    async with connection:
        found = await connection.execute("SELECT client_serial FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
        (serial,) = await found.fetchone() or (0,)
    return int(serial)


def foreign(stranger: FakeAuthority, server: CAServer, folder: Path) -> Path:
    """Our own name by another root, which trusts ours."""
    write_svid(folder, X509Context((stranger.svid("/client"),), BundleSet((server.ca.authority.bundle(),))))
    return folder


if program() is not None:

    async def test_nginx_serves_the_certificate_of_the_moment_without_a_failed_request(
        server: CAServer, place: Path
    ) -> None:
        own = place / "nginx"
        own.mkdir()
        web = FilesSettings("web", place / "web", layout="tls", signal="HUP", pid_file=own / "nginx.pid")
        server.register(**rows("web"))
        async with agent_with(server, place, web) as agent:
            await written(agent)
            with ExitStack() as stack:
                port = await asyncio.to_thread(stack.enter_context, nginx(own, place / "web"))
                source = MemorySource.of(server.ca.authority.svid(CLIENT.path), server.ca.authority.bundle())
                seen: set[int] = set()

                async def get() -> str:
                    """What nginx answers; which certificate it presents is noted."""
                    context = client_context(source, any_id())
                    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
                    try:
                        seen.add(peer_chain(writer)[0].serial_number)
                        writer.write(b"GET / HTTP/1.0\r\n\r\n")
                        return (await reader.read()).decode()
                    finally:
                        writer.close()
                        await writer.wait_closed()

                def is_ours(answer: str) -> bool:
                    return answer.startswith("HTTP/1.1 200") and answer.lower().endswith(
                        f"{source.svid().leaf.serial_number:x}"
                    )

                for number in range(1, ROTATIONS + 1):
                    await rotate(agent, number, "web")
                    (writer,) = agent.agent.workloads.files
                    assert writer.state.svid is not None
                    serial = writer.state.svid.leaf.serial_number
                    async with asyncio.timeout(60):
                        while serial not in seen:  # its new workers take over in a moment
                            assert is_ours(await get())
                assert len(seen) >= ROTATIONS

                source.replace(X509Context((FakeAuthority().svid(CLIENT.path),), source.x509_context().bundles))
                assert "The SSL certificate error" in await get()
                source.replace(X509Context((server.ca.authority.svid(CLIENT.path),), source.x509_context().bundles))
                assert is_ours(await get())
