"""Each example is copied, given a folder and a port, and run as it stands: processes, files, and a new root in them."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from tests.fakes.processes import free_port
from tests.fakes.svid_folder import SVIDFolder
from tests.fakes.waiting import until
from tests.integration.examples.world import CLIENT, OTHER, SERVER, World

EXAMPLES = Path(__file__).parents[3] / "docs" / "examples"
LINES = f"{SERVER} answers {CLIENT} says hello"
PAIRS = {
    ("asyncio_server", "asyncio_client"): LINES,
    ("socket_server", "socket_client"): LINES,
    ("socketserver_server", "socket_client"): LINES,
    ("http_server", "requests_client"): str(CLIENT),
    ("aiohttp_server", "urllib3_client"): str(CLIENT),
    ("uvicorn_server", "aiohttp_client"): str(CLIENT),
    ("uvicorn_server", "httpx_client"): f"{SERVER} answers {CLIENT}",
    ("hypercorn_server", "httpx_async_client"): f"{SERVER} answers welcome",
}


class Setup:
    """Copies of examples, and the folders of two workloads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.world = World()
        self.server, self.client = SVIDFolder(folder / "server"), SVIDFolder(folder / "client")
        self.write()

    def write(self) -> None:
        for files, source in ((self.server, self.world.server), (self.client, self.world.client)):
            files.path.mkdir(exist_ok=True)
            files.write(source.x509_context())

    async def start(self, name: str, files: SVIDFolder) -> asyncio.subprocess.Process:
        text = (EXAMPLES / f"{name}.py").read_text()
        assert "/etc/certs" in text
        assert "8443" in text
        copy = self.folder / f"{name}.py"
        copy.write_text(text.replace("/etc/certs", str(files.path)).replace("8443", str(self.port)))
        pipe = asyncio.subprocess.PIPE
        return await asyncio.create_subprocess_exec(sys.executable, copy, stdout=pipe, stderr=pipe)

    @asynccontextmanager
    async def serving(self, name: str) -> AsyncIterator[asyncio.subprocess.Process]:
        process = await self.start(name, self.server)
        try:
            await until(lambda: process.returncode is not None or self.listens())
            assert process.returncode is None, await process.communicate()
            yield process
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            await process.communicate()

    def listens(self) -> bool:
        hexadecimal = f":{self.port:04X} 00000000:0000 0A"  # as the kernel says it: nobody is disturbed by a connection
        return hexadecimal in Path("/proc/net/tcp").read_text()

    async def ask(self, name: str) -> tuple[str, str]:
        """What a client printed, and its errors."""
        out, err = await (await self.start(name, self.client)).communicate()
        return out.decode().strip(), err.decode()


@pytest.mark.parametrize(("server", "client"), PAIRS)
async def test_the_programs_meet(server: str, client: str, tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    async with setup.serving(server):
        assert await setup.ask(client) == (PAIRS[server, client], "")


async def test_a_program_follows_its_files_to_a_new_root(tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    async with setup.serving("asyncio_server") as process:
        setup.world.rotate_root()
        setup.write()
        async with asyncio.timeout(20):
            while (await setup.ask("socket_client"))[0] != LINES:
                pass  # its files are looked at each second
        assert process.returncode is None


async def test_a_program_says_whom_it_refused(tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    setup.world.server_is(OTHER)
    setup.write()
    async with setup.serving("asyncio_server"):
        out, err = await setup.ask("socket_client")
    assert out == ""
    assert f"{OTHER} is refused: welcome is {SERVER}" in err.splitlines()[-1]


def test_every_example_is_run_here() -> None:
    programs = {path.stem for path in EXAMPLES.glob("*.py")}
    others = {name for name in programs if name.startswith(("grpc_", "psycopg"))}  # which have tests of their own
    assert programs - others == {name for pair in PAIRS for name in pair}
