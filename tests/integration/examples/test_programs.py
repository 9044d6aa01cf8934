"""Each example is copied, given a folder and a port, and run as it stands: servers as processes, whose files change."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import io
import os
import runpy
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from istio_auth.peer import PeerRefused
from tests.fakes.svid_folder import SVIDFolder
from tests.fakes.tcp import closed_port
from tests.fakes.waiting import until
from tests.integration.examples import servers
from tests.integration.examples.world import CLIENT, OTHER, SERVER, World

EXAMPLES = Path(__file__).parents[3] / "docs" / "examples"
LINES = f"{SERVER} answers {CLIENT} says hello"
PAIRS = {
    ("socket_server", "asyncio_client"): LINES,
    ("socketserver_server", "socket_client"): LINES,
    ("http_server", "requests_client"): str(CLIENT),
    ("aiohttp_server", "httpx_client"): f"{SERVER} answers {CLIENT}",
    ("uvicorn_server", "aiohttp_client"): str(CLIENT),
    ("hypercorn_server", "httpx_async_client"): f"{SERVER} answers welcome",
}
ROTATING_PAIRS = {
    ("asyncio_server", "socket_client"): LINES,
    ("gunicorn_config", "urllib3_client"): str(CLIENT),
    ("uvicorn_workers", "urllib3_client"): str(CLIENT),
}
BEHIND_A_GATEWAY = {"starlette_app", "uvicorn_behind_proxy"}  # see test_servers
WITH_WORKERS = ("gunicorn_config", "uvicorn_workers")


class Setup:
    """Copies of examples, and the folders of two workloads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = closed_port()
        self.world = World()
        self.server, self.client = SVIDFolder(folder / "server"), SVIDFolder(folder / "client")
        self.write()

    def write(self) -> None:
        for files, source in ((self.server, self.world.server), (self.client, self.world.client)):
            files.path.mkdir(exist_ok=True)
            files.write(source.x509_context())

    def copy(self, name: str, files: SVIDFolder) -> Path:
        """The example as somebody would have it."""
        text = (EXAMPLES / f"{name}.py").read_text()
        assert "/etc/certs" in text
        assert "8443" in text
        copy = self.folder / f"{name}.py"
        copy.write_text(text.replace("/etc/certs", str(files.path)).replace("8443", str(self.port)))
        return copy

    @asynccontextmanager
    async def serving(self, name: str) -> AsyncIterator[asyncio.subprocess.Process]:
        copy = self.copy(name, self.server)
        command = ("-m", "gunicorn", "--config", copy, f"{name}:app") if name == "gunicorn_config" else (copy,)
        environment = os.environ | {"HOME": str(self.folder), "PYTHONPATH": str(EXAMPLES.parents[1])}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, *command),
            stderr=asyncio.subprocess.PIPE,
            cwd=self.folder,
            env=environment,
            start_new_session=True,
        )
        try:
            await until(lambda: process.returncode is not None or self.listens())
            assert process.returncode is None, await process.communicate()
            yield process
            assert process.returncode is None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # its workers too
            await process.communicate()

    def listens(self) -> bool:
        hexadecimal = f":{self.port:04X} 00000000:0000 0A"  # as the kernel says it: nobody is disturbed by a connection
        return hexadecimal in Path("/proc/net/tcp").read_text()

    async def ask(self, name: str) -> str:
        """What a client prints."""
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            await asyncio.to_thread(runpy.run_path, str(self.copy(name, self.client)), run_name="__main__")
        return printed.getvalue().strip()


@pytest.mark.parametrize(("server", "client"), PAIRS)
async def test_the_programs_meet(server: str, client: str, tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    async with setup.serving(server):
        assert await setup.ask(client) == PAIRS[server, client]


@pytest.mark.parametrize(("server", "client"), ROTATING_PAIRS)
async def test_the_programs_follow_their_files_to_a_new_root(server: str, client: str, tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    async with setup.serving(server):
        assert await setup.ask(client) == ROTATING_PAIRS[server, client]
        setup.world.rotate_root()
        setup.write()
        for _ in range(2 if server in WITH_WORKERS else 1):
            await follows(setup, client, ROTATING_PAIRS[server, client])


async def follows(setup: Setup, client: str, answer: str) -> None:
    """Wait until the server has seen its new files, at which it looks each second."""
    async with asyncio.timeout(60):
        while True:
            with suppress(Exception):  # refused, as each library says it
                if await setup.ask(client) == answer:
                    return


async def test_a_program_says_whom_it_refused(tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    setup.world.server_is(OTHER)
    async with servers.on_asyncio(setup.world.server) as setup.port:
        with pytest.raises(PeerRefused, match=f"{OTHER} is refused: welcome is {SERVER}"):
            await setup.ask("socket_client")
        setup.world.server_is(SERVER)
        assert await setup.ask("socket_client") == LINES


def test_every_example_is_run_here() -> None:
    programs = {path.stem for path in EXAMPLES.glob("*.py")}
    others = {name for name in programs if name.startswith(("grpc_", "psycopg"))}  # which have tests of their own
    assert programs - others == {name for pair in (*PAIRS, *ROTATING_PAIRS) for name in pair} | BEHIND_A_GATEWAY


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_each_example_is_small_and_says_what_it_is(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 60
    assert ast.get_docstring(ast.parse(text))
