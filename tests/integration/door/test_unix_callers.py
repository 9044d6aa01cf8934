"""Processes of this machine: known by what the kernel says of them, and guarded against process ids used again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from istio_auth.door import Door, DoorLimits, UnixCaller
from istio_auth.errors import ConfigurationError, Exhausted, IstioAuthError, NotAuthenticated, NotAuthorized, NotReady
from tests.fakes.private_server import PrivateServer
from tests.fakes.waiting import until

Refusals = list[tuple[str, IstioAuthError]]
CHILD = """
import os, socket, sys
connection = socket.socket(socket.AF_UNIX)
os.chdir(os.path.dirname(sys.argv[1]))
os.setegid(int(sys.argv[3]))
os.seteuid(int(sys.argv[2]))
connection.connect(os.path.basename(sys.argv[1]))
print(connection.makefile().readline().strip(), flush=True)
sys.stdin.read()
"""
SUCCESSOR = """
import os, socket, sys
from tests.fakes.pod_process import fork_as
if (caller := os.fork()) == 0:
    socket.socket(socket.AF_UNIX).connect(sys.argv[1])
    os._exit(0)
os.waitpid(caller, 0)
if fork_as(caller) == 0:
    sys.stdin.read()  # as long as the test wants it
    os._exit(0)
print(caller, flush=True)
os.waitpid(caller, 0)
"""


@asynccontextmanager
async def child(
    path: Path, *, uid: int | None = None, gid: int | None = None
) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """Another process that calls, and what it was greeted with."""
    who = [str(os.geteuid() if uid is None else uid), str(os.getegid() if gid is None else gid)]
    command = [sys.executable, "-c", CHILD, str(path), *who]
    process = await asyncio.create_subprocess_exec(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        yield process, (await process.stdout.readline()).decode().strip()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def greeting(path: Path) -> str:
    """What this process is called; empty if it was not let in."""
    reader, writer = await asyncio.open_unix_connection(str(path))
    try:
        return (await reader.readline()).decode().strip()
    except ConnectionError:
        return ""
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def test_a_process_is_known_by_its_credentials(door: Door, server: PrivateServer, tmp_path: Path) -> None:
    await door.listen_unix(tmp_path / "s", name="workloads")
    async with child(tmp_path / "s") as (process, name):
        (caller,) = server.callers
        assert isinstance(caller, UnixCaller)
        assert caller == UnixCaller(os.geteuid(), os.getegid(), process.pid, "workloads")
        assert name == str(caller)
        assert f"process {process.pid} (uid {os.geteuid()}, gid {os.getegid()})" in name
        caller.check_same_process()
        assert caller.process is not None
        assert caller.process.started > 0


@pytest.mark.root
async def test_a_process_of_another_user_is_known_as_that(door: Door, server: PrivateServer, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)  # noqa: ASYNC240  # nobody waits for this loop yet
    await door.listen_unix(tmp_path / "s", name="workloads", mode=0o666)
    async with child(tmp_path / "s", uid=65534, gid=65533):
        (caller,) = server.callers
        assert isinstance(caller, UnixCaller)
        assert (caller.uid, caller.gid) == (65534, 65533)
        caller.check_same_process()


async def test_a_process_that_has_ended_is_the_same_no_more(door: Door, server: PrivateServer, tmp_path: Path) -> None:
    await door.listen_unix(tmp_path / "s", name="workloads")
    async with child(tmp_path / "s") as (process, _):
        (caller,) = server.callers
        assert isinstance(caller, UnixCaller)
        process.kill()
        await process.wait()
        with pytest.raises(NotAuthenticated, match="has ended"):
            caller.check_same_process()
    await until(lambda: not door.connections)


async def test_a_caller_that_has_left_can_not_be_checked_and_holds_nothing(
    door: Door, server: PrivateServer, tmp_path: Path
) -> None:
    await door.listen_unix(tmp_path / "s", name="workloads")
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208  # names alone
    for _ in range(20):
        assert await greeting(tmp_path / "s")
    await until(lambda: not door.connections)
    await until(lambda: not server.open)
    await until(lambda: len(os.listdir("/proc/self/fd")) <= before)  # noqa: PTH208  # the same
    caller = server.callers[0]
    assert isinstance(caller, UnixCaller)
    with pytest.raises(NotAuthenticated):
        caller.check_same_process()


async def test_a_process_that_has_ended_before_it_was_seen_is_refused(
    door: Door, server: PrivateServer, tmp_path: Path, refusals: Refusals
) -> None:
    await door.listen_unix(tmp_path / "s", name="workloads")
    script = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "s")], check=True, timeout=60)  # noqa: ASYNC221  # the loop shall not see it
    await until(lambda: refusals)
    ((listener, reason),) = refusals
    assert listener == "workloads"
    assert isinstance(reason, NotAuthenticated)
    assert "has ended" in str(reason)
    assert not server.callers
    await until(lambda: not door.connections)


@contextlib.contextmanager
def with_the_id_of_a_caller_that_has_ended(path: Path) -> Iterator[int]:
    """The id of a living process, which was that of a process that called, and that nobody has looked at yet."""
    command = [sys.executable, "-c", SUCCESSOR, str(path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[3]
    ) as program:
        assert program.stdout is not None
        yield int(program.stdout.readline())


@pytest.mark.root
async def test_a_process_id_used_again_is_not_taken_for_the_caller(
    door: Door, server: PrivateServer, tmp_path: Path, refusals: Refusals
) -> None:
    await door.listen_unix(tmp_path / "s", name="workloads")
    with with_the_id_of_a_caller_that_has_ended(tmp_path / "s") as pid:
        assert Path(f"/proc/{pid}").exists()  # noqa: ASYNC240  # it is at hand
        await until(lambda: any(str(pid) in str(reason) for _, reason in refusals) or server.callers)
        assert not server.callers
        assert all("has ended" in str(reason) for _, reason in refusals)


async def test_a_caller_that_is_not_welcome_is_refused(
    door: Door, server: PrivateServer, tmp_path: Path, refusals: Refusals
) -> None:
    welcome = set[int]()

    def admit(caller: UnixCaller) -> None:
        caller.check_same_process()
        if caller.uid not in welcome:
            raise NotAuthorized(f"uid {caller.uid} is not welcome")

    await door.listen_unix(tmp_path / "s", name="picky", admit=admit)
    assert not await greeting(tmp_path / "s")
    assert [(listener, str(reason)) for listener, reason in refusals] == [
        ("picky", f"uid {os.geteuid()} is not welcome")
    ]
    assert (door.accepted, door.refused) == (0, 1)
    await until(lambda: not door.connections)
    welcome.add(os.geteuid())
    assert await greeting(tmp_path / "s")
    assert len(server.callers) == 1


async def test_whatever_goes_wrong_with_the_decision_refuses(
    door: Door, server: PrivateServer, tmp_path: Path, refusals: Refusals
) -> None:
    def broken(_caller: UnixCaller) -> None:
        raise ZeroDivisionError

    await door.listen_unix(tmp_path / "s", name="broken", admit=broken)
    assert not await greeting(tmp_path / "s")
    assert "ZeroDivisionError" in str(refusals[0][1])
    assert not server.callers


async def test_one_user_has_a_limit(tmp_path: Path, refusals: Refusals) -> None:
    limits = DoorLimits(per_caller=1)
    async with (
        Door(limits=limits, on_refused=lambda *refusal: refusals.append(refusal)) as door,
        PrivateServer(door),
    ):
        await door.listen_unix(tmp_path / "one", name="one")
        await door.listen_unix(tmp_path / "two", name="two")
        async with child(tmp_path / "one"):
            assert not await greeting(tmp_path / "two")
            assert isinstance(refusals[0][1], Exhausted)
            assert f"1 connections of uid {os.geteuid()} are open" in str(refusals[0][1])
        await until(lambda: not door.connections)
        assert await greeting(tmp_path / "two")


async def test_a_socket_can_have_a_limit_of_its_own_whoever_comes_through_it(
    tmp_path: Path, refusals: Refusals
) -> None:
    limits = DoorLimits(per_caller=1)
    async with (
        Door(limits=limits, on_refused=lambda *refusal: refusals.append(refusal)) as door,
        PrivateServer(door),
    ):
        for name in ("one", "two"):
            await door.listen_unix(tmp_path / name, name=name, as_one=True)
        async with child(tmp_path / "one"):
            assert not await greeting(tmp_path / "one")
            assert "1 connections of socket one are open" in str(refusals[0][1])
            assert await greeting(tmp_path / "two")


async def test_one_socket_can_be_closed_and_the_others_and_those_who_are_in_stay(
    door: Door, server: PrivateServer, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        await door.listen_unix(tmp_path / name, name=name)
    async with child(tmp_path / "one"):
        door.stop_listening_at(tmp_path / "one")
        door.stop_listening_at(tmp_path / "one")
        assert not (tmp_path / "one").exists()
        assert door.connections == 1
        assert await greeting(tmp_path / "two")
    await door.listen_unix(tmp_path / "one", name="one")
    assert await greeting(tmp_path / "one")


async def test_each_listener_names_its_callers(door: Door, server: PrivateServer, tmp_path: Path) -> None:
    for name in ("one", "two"):
        await door.listen_unix(tmp_path / name, name=name)
        assert await greeting(tmp_path / name)
    assert [caller.socket for caller in server.callers if isinstance(caller, UnixCaller)] == ["one", "two"]


class TestThePrivateServer:
    async def test_whoever_did_not_come_through_the_door_is_a_stranger(
        self, door: Door, server: PrivateServer, tmp_path: Path
    ) -> None:
        await door.listen_unix(tmp_path / "s", name="workloads")
        assert not await greeting(Path(server.path))
        with socket.socket(socket.AF_UNIX) as guessing:
            guessing.bind("\0" + "0" * 32)
            guessing.connect(server.path)
            await until(lambda: server.strangers == 2)
        assert await greeting(tmp_path / "s")
        assert len(server.callers) == 1

    async def test_its_folder_is_closed_to_all_others(self, door: Door, server: PrivateServer) -> None:
        folder = Path(server.path).parent
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert folder.stat().st_uid == os.geteuid()
        await door.close(timedelta())
        assert not folder.exists()

    @pytest.mark.usefixtures("server")
    async def test_names_can_not_be_guessed(self, door: Door, tmp_path: Path) -> None:
        await door.listen_unix(tmp_path / "s", name="workloads")
        names = set[str]()
        for _ in range(5):
            reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))
            await reader.readline()
            names.update(door._register._callers)
            writer.close()
            await until(lambda: not door.connections)
        assert len(names) == 5
        assert all(len(bytes.fromhex(name)) == 16 for name in names)

    @pytest.mark.parametrize("peer", ["", "unix:", "unix-abstract:", "ipv4:127.0.0.1:1", "unix-abstract:" + "0" * 32])
    async def test_other_peers_are_nobody(self, door: Door, peer: str) -> None:
        with pytest.raises(NotAuthenticated):
            door.caller(peer)


class TestItsSocket:
    @pytest.mark.parametrize("mode", [0o600, 0o660, 0o666])
    async def test_has_the_mode_that_was_asked_for(self, door: Door, tmp_path: Path, mode: int) -> None:
        await door.listen_unix(tmp_path / "s", name="s", mode=mode)
        assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == mode

    @pytest.mark.usefixtures("server")
    async def test_replaces_one_that_was_left_behind(self, door: Door, tmp_path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(tmp_path / "s"))
        await door.listen_unix(tmp_path / "s", name="s")
        assert await greeting(tmp_path / "s")

    @pytest.mark.usefixtures("server")
    async def test_leaves_alone_where_somebody_listens(self, door: Door, tmp_path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as living:
            living.bind(str(tmp_path / "s"))
            living.listen(1)
            with pytest.raises(NotReady, match="another process listens there"):
                await door.listen_unix(tmp_path / "s", name="s")
            with socket.socket(socket.AF_UNIX) as visitor:
                visitor.connect(str(tmp_path / "s"))  # still theirs
        await door.listen_unix(tmp_path / "s", name="s")
        assert await greeting(tmp_path / "s")

    async def test_leaves_alone_where_somebody_is_too_busy_to_answer(self, door: Door, tmp_path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as busy, contextlib.ExitStack() as queue:
            busy.bind(str(tmp_path / "s"))
            busy.listen(0)
            for _ in range(2):
                waiting = queue.enter_context(socket.socket(socket.AF_UNIX))
                waiting.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    waiting.connect(str(tmp_path / "s"))
            with pytest.raises(NotReady):
                await door.listen_unix(tmp_path / "s", name="s")

    async def test_leaves_files_and_folders_alone(self, door: Door, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("precious")
        (tmp_path / "folder").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "file")
        for name in ("file", "folder", "link"):
            with pytest.raises(ConfigurationError, match="is no socket"):
                await door.listen_unix(tmp_path / name, name="s")
        assert (tmp_path / "file").read_text() == "precious"
        assert (tmp_path / "link").is_symlink()

    async def test_needs_a_folder_and_a_short_path(self, door: Door, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match="there is no folder"):
            await door.listen_unix(tmp_path / "missing" / "s", name="s")
        with pytest.raises(ConfigurationError, match="too long for a Unix socket"):
            await door.listen_unix(tmp_path / ("x" * 108), name="s")

    async def test_is_gone_when_nobody_listens_any_more(self, door: Door, tmp_path: Path) -> None:
        await door.listen_unix(tmp_path / "s", name="s")
        door.stop_listening()
        assert not (tmp_path / "s").exists()
        await door.listen_unix(tmp_path / "s", name="s")  # and may be had again
        assert (tmp_path / "s").is_socket()


async def test_a_door_whose_folder_has_too_long_a_name_leaves_nothing_behind(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    with pytest.raises(ConfigurationError, match="too long"):
        Door(folder=folder)
    assert not list(folder.iterdir())
