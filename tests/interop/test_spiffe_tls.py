"""The `spiffe-tls` package and our contexts, each as client and as server of the other, with SVIDs of one mesh."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from istio_auth.authorize import any_id, is_id
from istio_auth.errors import Fault, NotAuthorized, VerificationError
from istio_auth.peer import PeerRefused
from istio_auth.sources.memory import MemorySource
from istio_auth.spiffe_id import SpiffeID
from istio_auth.svid import X509SVID
from istio_auth.tls import client_context, peer_id, server_context
from tests.fakes import workload_api as fake
from tests.fakes.workload_api import FakeWorkloadAPI
from tests.vectors.x509_svid import BUNDLES, FEDERATED, LOCAL

OURS = SpiffeID.parse("spiffe://cluster.local/ours")
THEIRS = SpiffeID.parse("spiffe://cluster.local/theirs")
HONEST = LOCAL.svid("/theirs")
FORGED = FEDERATED.svid(uris=[str(THEIRS)])  # by the CA of another trust domain that both sides trust


@pytest.fixture
def api(tmp_path: Path) -> Iterator[FakeWorkloadAPI]:
    with FakeWorkloadAPI(tmp_path / "agent.sock") as found:
        yield found


@pytest.fixture
def ours() -> MemorySource:
    return MemorySource.of(LOCAL.svid("/ours"), *BUNDLES)


def give(api: FakeWorkloadAPI, svid: X509SVID) -> None:
    """Let the package hold this SVID and the roots of both trust domains, which it pools."""
    api.x509.say(fake.x509(fake.entry(svid, LOCAL.bundle()), federated=[FEDERATED.bundle()]))


@contextlib.asynccontextmanager
async def package(*words: object) -> AsyncIterator[asyncio.StreamReader]:
    """What the package's program prints."""
    command = (sys.executable, "-m", "tests.interop.spiffe_tls", *map(str, words))
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    try:
        yield process.stdout
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def line(output: asyncio.StreamReader) -> str:
    async with asyncio.timeout(60):
        return (await output.readline()).decode().strip()


async def dial(port: int, source: MemorySource, expected: SpiffeID) -> tuple[SpiffeID, str]:
    """Whom a client of ours met, and what it was told."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client_context(source, is_id(expected)))
    try:
        return peer_id(writer), await line(reader)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def test_its_server_and_our_client_know_each_other(api: FakeWorkloadAPI, ours: MemorySource) -> None:
    give(api, HONEST)
    async with package("serve", api.address) as output:
        port = int(await line(output))
        assert await dial(port, ours, THEIRS) == (THEIRS, f"you are {OURS}")
        assert await line(output) == f"met {OURS}"
        with pytest.raises(PeerRefused) as caught:
            await dial(port, ours, OURS)
        assert isinstance(caught.value.reason_error, NotAuthorized)


async def test_its_server_under_a_forged_name_is_refused_by_us(api: FakeWorkloadAPI, ours: MemorySource) -> None:
    give(api, FORGED)
    async with package("serve", api.address) as output:
        with pytest.raises(PeerRefused) as caught:
            await dial(int(await line(output)), ours, THEIRS)
    assert isinstance(caught.value.reason_error, VerificationError)
    assert caught.value.reason_error.fault is Fault.UNTRUSTED
    assert "no path to the bundle of cluster.local" in str(caught.value)


@contextlib.asynccontextmanager
async def serving(source: MemorySource) -> AsyncIterator[int]:
    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(f"you are {peer_id(writer)}\n".encode())
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=server_context(source, any_id()))
    async with server:
        yield server.sockets[0].getsockname()[1]


async def test_its_client_is_known_to_our_server_and_told_nothing_under_a_forged_name(
    api: FakeWorkloadAPI, ours: MemorySource, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "istio_auth.tls")
    async with serving(ours) as port:
        give(api, HONEST)
        async with package("dial", api.address, f"127.0.0.1:{port}") as output:
            assert await line(output) == f"met {OURS} you are {THEIRS}"
        give(api, FORGED)
        async with package("dial", api.address, f"127.0.0.1:{port}") as output:
            assert (await line(output)).startswith("refused")
        assert "no path to the bundle of cluster.local" in caplog.text


async def test_the_package_itself_takes_the_forged_name(api: FakeWorkloadAPI, tmp_path: Path) -> None:
    """So the forgery is a good one: what stands in its way, where it is refused, is our verdict."""
    give(api, FORGED)
    with FakeWorkloadAPI(tmp_path / "other.sock") as other:
        other.x509.say(fake.x509(fake.entry(LOCAL.svid("/ours"), LOCAL.bundle()), federated=[FEDERATED.bundle()]))
        async with package("serve", other.address) as server:
            port = int(await line(server))
            async with package("dial", api.address, f"127.0.0.1:{port}") as client:
                assert await line(client) == f"met {OURS} you are {THEIRS}"
