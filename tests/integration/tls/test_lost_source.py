"""A Workload API that is gone for an hour: its last good SVID serves to its end, and then the reason is told."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from istio_auth.authorize import any_id, is_id
from istio_auth.errors import NotReady
from istio_auth.peer import HandshakeRefused, PeerRefused
from istio_auth.sources.memory import MemorySource
from istio_auth.sources.workload_api import WorkloadAPISource
from istio_auth.spiffe_id import SpiffeID
from istio_auth.tls import client_context, peer_id, server_context
from tests.fakes import workload_api as fake
from tests.fakes.authority import HOUR
from tests.fakes.clock import FakeClock
from tests.fakes.tls import meet
from tests.fakes.waiting import until
from tests.fakes.workload_api import FakeWorkloadAPI
from tests.vectors.x509_svid import BUNDLES, LOCAL, NOW

OURS = SpiffeID.parse("spiffe://cluster.local/ours")
MINUTE = timedelta(minutes=1)


@contextlib.asynccontextmanager
async def greeting(source: MemorySource, clock: FakeClock) -> AsyncIterator[tuple[str, int]]:
    """A server that tells each caller its name."""

    async def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(f"{peer_id(writer)}\n".encode())
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    server = await asyncio.start_server(greet, "127.0.0.1", 0, ssl=server_context(source, is_id(OURS), clock=clock))
    async with server:
        yield server.sockets[0].getsockname()


async def test_the_last_good_svid_serves_to_its_end_and_then_both_sides_of_ours_say_why(tmp_path: Path) -> None:
    clock = FakeClock(NOW)
    peer = MemorySource.of(LOCAL.svid("/peer", not_after=NOW + 50 * HOUR), *BUNDLES)
    with FakeWorkloadAPI(tmp_path / "agent.sock") as api:
        api.x509.say(fake.x509(fake.entry(LOCAL.svid("/ours", not_after=NOW + HOUR), LOCAL.bundle())))
        async with WorkloadAPISource(api.address, clock=clock) as source, greeting(peer, clock) as address:
            await source.ready(timedelta(seconds=60))
            context = client_context(source, any_id(), clock=clock)

            async def dial() -> str:
                reader, writer = await asyncio.open_connection(*address, ssl=context)
                try:
                    return (await reader.readline()).decode().strip()
                finally:
                    writer.close()
                    with contextlib.suppress(OSError):
                        await writer.wait_closed()

            assert await dial() == str(OURS)
            api.stop()
            await until(lambda: source.status().trouble)
            for _ in range(2):
                clock.advance(29 * MINUTE)
                assert await dial() == str(OURS)
            clock.advance(3 * MINUTE)
            with pytest.raises(HandshakeRefused) as caught:
                await dial()
            assert not isinstance(caught.value, PeerRefused)
            assert isinstance(caught.value.reason_error, NotReady)
            for said in (str(OURS), "has ended at", "was not renewed", str(api.path)):
                assert said in str(caught.value)
            _, server = meet(client_context(peer, any_id(), clock=clock), server_context(source, any_id(), clock=clock))
            words = str(caught.value.reason_error).partition("was not renewed")[0]  # the latest trouble may be another
            assert str(server.refusal).startswith(words)
            api.x509.say(fake.x509(fake.entry(LOCAL.svid("/ours", not_after=NOW + 3 * HOUR), LOCAL.bundle())))
            api.start()
            await source.ready(timedelta(seconds=60))
            assert await dial() == str(OURS)
