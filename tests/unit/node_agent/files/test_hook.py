"""Telling a program that its files have changed: real commands, real signals, real HTTP; and what they do wrong."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from aiohttp import web

from istio_auth.errors import NotReady
from node_agent.files.hook import hook_of, post, run_command, send_signal
from node_agent.files.settings import FilesSettings
from tests.fakes.waiting import until

SHORT = timedelta(milliseconds=300)
LONG = timedelta(seconds=60)


def running(folder: Path, script: str, *, timeout: timedelta = LONG) -> FilesSettings:
    return FilesSettings("web", folder, command=(sys.executable, "-I", "-c", script), timeout=timeout)


class TestACommand:
    async def test_is_told_which_files_they_are_and_nothing_else(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SECRET_OF_THE_AGENT", "1")
        script = f"import os; open({str(tmp_path / 'told')!r}, 'w').write(repr(sorted(os.environ)))"
        assert await run_command(running(tmp_path, script)) == "the command ended well"
        assert "ISTIO_AUTH_FOLDER" in (tmp_path / "told").read_text()
        assert "SECRET_OF_THE_AGENT" not in (tmp_path / "told").read_text()

    async def test_that_fails_is_quoted_and_works_once_it_is_mended(self, tmp_path: Path) -> None:
        with pytest.raises(NotReady, match="ended with 3: no such configuration"):
            await run_command(running(tmp_path, "import sys; print('no such\\nconfiguration'); sys.exit(3)"))
        assert await run_command(running(tmp_path, "pass"))

    async def test_that_says_too_much_is_quoted_in_part(self, tmp_path: Path) -> None:
        script = (
            "import os, time\n"
            "print('x' * 10_000_000 + ' the end', flush=True)\n"
            "while {until} and os.fstat(1).st_blocks * 512 > 1_000_000: time.sleep(0.01)\n"
            "raise SystemExit(1)\n"
        )
        for until_it_is_shortened in (False, True):
            with pytest.raises(NotReady) as failed:
                await run_command(running(tmp_path, script.format(until=until_it_is_shortened)))
            assert str(failed.value).endswith("the end")
            assert len(str(failed.value)) < 600

    async def test_that_hangs_is_ended_with_all_its_children(self, tmp_path: Path) -> None:
        pids = tmp_path / "pids"
        script = (
            "import os, time\n"
            "child = os.fork()\n"
            f"open({str(pids)!r}, 'a').write(f'{{os.getpid()}}\\n')\n"
            "time.sleep(1000)\n"
        )
        await hangs(tmp_path, script, said=lambda: pids.exists() and len(pids.read_text().split()) >= 2)
        for pid in pids.read_text().split():
            await until(lambda pid=pid: not _runs(int(pid)))  # type: ignore[misc]  # bound now

    async def test_that_will_not_hear_of_an_end_is_ended_all_the_same(self, tmp_path: Path) -> None:
        deaf = "import signal, time\nfor each in (15, 1, 2):\n    signal.signal(each, signal.SIG_IGN)\n"
        pid = tmp_path / "pid"
        script = deaf + f"open({str(pid)!r}, 'w').write(str(__import__('os').getpid()))\ntime.sleep(1000)\n"
        await hangs(tmp_path, script, said=lambda: pid.exists() and pid.read_text())
        assert not _runs(int(pid.read_text()))

    async def test_that_goes_on_talking_does_not_fill_the_disk(self, tmp_path: Path) -> None:
        """Its output is in a file without a name: how large it is on the disk, the command sees itself."""
        seen = tmp_path / "seen"
        script = (
            "import os, time\n"
            "said = now = 0\n"
            "while not said > 1_000_000 > now:\n"
            "    said += os.write(1, b'x' * 100_000)\n"
            "    now = os.fstat(1).st_blocks * 512\n"
            "    time.sleep(0.001)\n"
            f"open({str(seen)!r}, 'w').write(f'{{said}} {{now}}')\n"
            "print(' the end')\n"
            "raise SystemExit(1)\n"
        )
        with pytest.raises(NotReady, match=r"x the end$"):
            await run_command(running(tmp_path, script))
        said, kept = map(int, seen.read_text().split())
        assert said > 1_000_000 > kept

    async def test_whose_child_lives_on_has_ended_all_the_same(self, tmp_path: Path) -> None:
        script = (
            "import os, time\n"
            "if (child := os.fork()):\n"
            f"    open({str(tmp_path / 'pid')!r}, 'w').write(str(child))\n"
            "else:\n"
            "    time.sleep(1000)\n"
        )
        assert await run_command(running(tmp_path, script)) == "the command ended well"
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)

    async def test_that_is_not_there_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(NotReady, match="/not/there can not be run: No such file"):
            await run_command(FilesSettings("web", tmp_path, command=("/not/there",)))

    async def test_ends_with_the_agent(self, tmp_path: Path) -> None:
        pid = tmp_path / "pid"
        script = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(1000)"
        task = asyncio.create_task(run_command(running(tmp_path, script)))
        await until(lambda: pid.exists() and pid.read_text() != "")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not _runs(int(pid.read_text()))


class TestASignal:
    def test_reaches_the_process_in_the_file(self, tmp_path: Path) -> None:
        heard: list[int] = []
        before = signal.signal(signal.SIGUSR2, lambda number, _frame: heard.append(number))
        try:
            (tmp_path / "pid").write_text(f"{os.getpid()}\n")
            settings = FilesSettings("web", tmp_path, signal="USR2", pid_file=tmp_path / "pid")
            assert send_signal(settings) == f"SIGUSR2 was sent to process {os.getpid()}"
            assert heard == [signal.SIGUSR2]
        finally:
            signal.signal(signal.SIGUSR2, before)

    def test_to_another_users_process_needs_a_capability_that_is_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def not_ours(*_: object) -> None:
            raise PermissionError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(signal, "pidfd_send_signal", not_ours)
        (tmp_path / "pid").write_text(f"{os.getpid()}\n")
        settings = FilesSettings("web", tmp_path, signal="HUP", pid_file=tmp_path / "pid")
        with pytest.raises(NotReady, match="was not sent HUP: it is another user's, for which we need CAP_KILL"):
            send_signal(settings)

    async def test_goes_to_no_process_of_another_name_that_has_the_number_now(self, tmp_path: Path) -> None:
        with subprocess.Popen(["sleep", "1000"]) as other:  # noqa: ASYNC220  # which begins at once
            try:
                await until(
                    lambda: Path(f"/proc/{other.pid}/comm").read_text() == "sleep\n"
                )  # a moment after its start
                (tmp_path / "pid").write_text(str(other.pid))
                settings = FilesSettings("web", tmp_path, signal="TERM", pid_file=tmp_path / "pid", process="nginx")
                with pytest.raises(NotReady, match=f"process {other.pid} of .* is sleep, not nginx: .* out of date"):
                    send_signal(settings)
                assert other.poll() is None
                assert send_signal(replace(settings, process="sleep"))
                assert other.wait(20) == -signal.SIGTERM
            finally:
                other.kill()

    @pytest.mark.root
    @pytest.mark.skipif(os.geteuid() != 0, reason="files and processes of other users need root")
    def test_goes_to_no_process_that_the_files_owner_could_not_signal_himself(self, tmp_path: Path) -> None:
        """Else whoever writes a file of his own could have a root's agent end any process."""
        pid_file, (owner, other) = tmp_path / "pid", (60001, 60002)
        with subprocess.Popen(["sleep", "1000"], user=other) as process:
            try:
                pid_file.write_text(str(process.pid))
                os.chown(pid_file, owner, owner)
                settings = FilesSettings("web", tmp_path, signal="TERM", pid_file=pid_file)
                with pytest.raises(NotReady, match=f"is of uid {other}, and .* belongs to uid {owner}"):
                    send_signal(settings)
                assert process.poll() is None
                os.chown(pid_file, other, other)
                assert send_signal(settings)
                assert process.wait(20) == -signal.SIGTERM
            finally:
                process.kill()

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (None, "No such file"),
            ("", "holds no process number"),
            ("1", "holds no process number"),
            ("-5", "holds no process number"),
            ("web", "holds no process number"),
            ("9" * 11, "holds no process number"),
            ("9" * 5000, "larger than"),
            ("2147483646", "No such process"),
        ],
    )
    def test_goes_to_nobody_else(self, tmp_path: Path, content: str | None, reason: str) -> None:
        if content is not None:
            (tmp_path / "pid").write_text(content)
        with pytest.raises(NotReady, match=reason):
            send_signal(FilesSettings("web", tmp_path, signal="HUP", pid_file=tmp_path / "pid"))


@asynccontextmanager
async def site(answer: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncIterator[str]:
    application = web.Application()
    application.router.add_post("/reload", answer)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        place = web.TCPSite(runner, "127.0.0.1", 0)
        await place.start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/reload"
    finally:
        await runner.cleanup()


class TestACall:
    async def test_that_is_answered_with_200_has_told(self, tmp_path: Path) -> None:
        async def answer(_request: web.Request) -> web.Response:
            return web.Response(text="fine")

        async with site(answer) as address:
            assert await post(FilesSettings("web", tmp_path, post=address)) == f"{address} answered 200"

    @pytest.mark.parametrize("status", [302, 404, 500])
    async def test_that_is_answered_otherwise_has_not(self, tmp_path: Path, status: int) -> None:
        async def answer(_request: web.Request) -> web.Response:
            return web.Response(status=status, headers={"Location": "/elsewhere"})

        async with site(answer) as address:
            with pytest.raises(NotReady, match=f"answered {status}"):
                await post(FilesSettings("web", tmp_path, post=address))

    async def test_that_is_not_answered_in_time_has_not(self, tmp_path: Path) -> None:
        async def answer(_request: web.Request) -> web.Response:
            await asyncio.Event().wait()
            raise AssertionError("it waits for ever")

        async with site(answer) as address:
            with pytest.raises(NotReady, match="does not answer"):
                await post(FilesSettings("web", tmp_path, post=address, timeout=SHORT))

    async def test_shows_nothing_of_its_query_whatever_comes_of_it(self, tmp_path: Path) -> None:
        status = 200

        async def answer(request: web.Request) -> web.Response:
            assert request.query["key"] == "s3cret"
            return web.Response(status=status)

        async def nonsense(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"nonsense\r\n\r\n")
            writer.close()

        async with site(answer) as address:
            settings = FilesSettings("web", tmp_path, post=f"{address}?key=s3cret")
            assert await post(settings) == f"{address} answered 200"
            status = 500
            with pytest.raises(NotReady, match=f"{address} answered 500$"):
                await post(settings)
        with pytest.raises(NotReady, match=f"{address} does not answer") as nobody:
            await post(settings)
        async with await asyncio.start_server(nonsense, "127.0.0.1", 0) as server:
            address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
            with pytest.raises(NotReady, match=f"{address} does not answer") as no_http:
                await post(FilesSettings("web", tmp_path, post=f"{address}?key=s3cret"))
        assert "s3cret" not in f"{nobody.value} {no_http.value}"

    async def test_where_nobody_listens_has_not(self, tmp_path: Path) -> None:
        with pytest.raises(NotReady, match="does not answer"):
            await post(FilesSettings("web", tmp_path, post="http://127.0.0.1:1/"))


def test_nobody_is_told_where_nobody_is_named(tmp_path: Path) -> None:
    assert hook_of(FilesSettings("web", tmp_path)) is None


async def hangs(folder: Path, script: str, *, said: Callable[[], object]) -> None:
    """Run a command that hangs until its time is up, which is as long as it needs to say that it runs."""
    for seconds in (1, 5, 25):
        with pytest.raises(NotReady, match=f"did not end within {seconds} s"):
            await run_command(running(folder, script, timeout=timedelta(seconds=seconds)))
        if said():
            return
    raise AssertionError("the command did not begin")


def _runs(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
