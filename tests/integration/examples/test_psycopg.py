"""psycopg presents the SVID of the moment from files, to a server of ours and to PostgreSQL itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from docs.examples import psycopg_files
from istio_auth import SVIDFiles, SVIDLayout, write_svid
from istio_auth.x509_source import X509Context
from tests.fakes import postgresql
from tests.fakes.authority import FakeAuthority
from tests.fakes.postgresql import GreetingServer
from tests.fakes.svid_folder import SVIDFolder
from tests.integration.examples.world import CLIENT, OTHER, SERVER, World

Connect = Callable[[], str]


def with_name(world: World, name: str = "localhost") -> None:
    """Give the server an SVID with a DNS name, which libpq looks for."""
    world.server_holds(world.authority.svid(SERVER.path, dns_names=[name]))


def serial(world: World) -> str:
    return f"{world.client.svid().leaf.serial_number:x}"


@pytest.fixture
def server(world: World) -> Iterator[GreetingServer]:
    with_name(world)
    with GreetingServer(world.server, CLIENT) as server:
        yield server


@pytest.fixture
def connect(world: World, server: GreetingServer, tmp_path: Path) -> Connect:
    files = psycopg_files.keep_written(world.client, tmp_path / "svid")

    def ask() -> str:
        with pytest.raises(psycopg.OperationalError) as answer:
            psycopg_files.connect(files, f"host=localhost port={server.port} user=web connect_timeout=60")
        return str(answer.value)

    return ask


class TestAServerOfOurs:
    def test_knows_its_client_by_the_svid_in_the_files(self, connect: Connect, world: World) -> None:
        assert f"web is {CLIENT} by {serial(world)}" in connect()

    def test_sees_a_new_svid_after_each_rotation(self, connect: Connect, world: World) -> None:
        seen = set()
        for _ in range(5):
            world.client_is(CLIENT)
            seen.add(serial(world))
            assert f"web is {CLIENT} by {serial(world)}" in connect()
        assert len(seen) == 5

    def test_of_a_new_root_is_known_once_the_files_have_it(self, connect: Connect, world: World) -> None:
        old = world.authority
        world.authority = FakeAuthority()
        with_name(world)
        assert "certificate verify failed" in connect()
        world.client_holds(old.svid(CLIENT.path))
        assert "web is" not in connect()
        world.client_is(CLIENT)
        assert f"web is {CLIENT} by {serial(world)}" in connect()

    def test_lets_nobody_else_in(self, connect: Connect, world: World, server: GreetingServer) -> None:
        world.client_is(OTHER)
        assert "web is" not in connect()
        assert f"{OTHER} is refused" in server.refusals.get(timeout=60)
        world.client_is(CLIENT)
        assert "web is" in connect()

    def test_without_the_name_is_none(self, connect: Connect, world: World) -> None:
        with_name(world, "elsewhere.test")
        assert 'server certificate for "elsewhere.test" does not match host name "localhost"' in connect()


def test_files_that_somebody_else_writes_do_as_well(world: World, server: GreetingServer, tmp_path: Path) -> None:
    SVIDFolder(tmp_path).write(world.client.x509_context())
    files = SVIDFiles.in_folder(tmp_path, SVIDLayout.ISTIO)
    with pytest.raises(psycopg.OperationalError, match=f"web is {CLIENT} by {serial(world)}"):
        psycopg_files.connect(files, f"host=localhost port={server.port} user=web connect_timeout=60")


# Where PostgreSQL is not installed this is not asked for: what libpq does is shown above, without it.
if postgresql.INSTALLED:

    def test_postgresql_itself_sees_the_new_svid_after_a_rotation(world: World, tmp_path: Path) -> None:
        with_name(world)
        files = psycopg_files.keep_written(world.client, tmp_path)
        with postgresql.postgresql(world.server.x509_context()) as (port, _):
            address = f"host=localhost port={port} user=web dbname=postgres connect_timeout=60"
            seen = set()
            for _ in range(2):
                with psycopg_files.connect(files, address) as connection:
                    query = "SELECT client_serial FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
                    (number,) = connection.execute(query).fetchone() or (0,)
                    seen.add(int(number))
                    assert int(number) == world.client.svid().leaf.serial_number
                connection.close()
                world.client_is(CLIENT)
            assert len(seen) == 2
            stranger = FakeAuthority()
            write_svid(tmp_path, X509Context((stranger.svid(CLIENT.path),), world.client.x509_context().bundles))
            with pytest.raises(psycopg.OperationalError, match="unknown ca"):
                psycopg_files.connect(files, address)
