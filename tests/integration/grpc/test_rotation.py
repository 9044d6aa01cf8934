"""Rotation needs no new channel and no new server: what runs goes on, and the next connection shows the SVID of now."""

from __future__ import annotations

import grpc
import pytest

from istio_auth.authorize import is_id
from istio_auth.bundle import BundleSet, TrustBundle
from istio_auth.errors import VerificationError
from istio_auth.grpc import grpc_channel
from istio_auth.sources.memory import MemorySource
from istio_auth.x509_source import X509Context
from tests.fakes.authority import FakeAuthority
from tests.fakes.waiting import until
from tests.integration.grpc.service import (
    AT_ONCE,
    CHAT,
    CLIENT,
    KINDS,
    SERVER,
    Refusals,
    Talk,
    cut,
    echo,
    new_server,
    served,
)
from tests.vectors.x509_svid import BUNDLES, LOCAL

NEW = FakeAuthority("cluster.local", now=LOCAL.now)
OF_BOTH = BundleSet((TrustBundle(LOCAL.trust_domain, (LOCAL.root, NEW.root)),))


@pytest.mark.parametrize("kind", KINDS)
async def test_a_stream_goes_on_and_the_next_connection_is_of_the_new_svids(
    kind: str, ours: MemorySource, theirs: MemorySource, talk: Talk
) -> None:
    async with (
        served(new_server(kind, talk), ours) as door,
        grpc_channel(theirs, is_id(SERVER), door.address) as channel,
    ):
        running = channel.stream_stream(CHAT)(None)
        await running.write(b"before")
        assert await running.read() == b"before"
        old = theirs.svid().leaf.serial_number
        theirs.replace(X509Context((LOCAL.svid("/client"),), BUNDLES))
        ours.replace(X509Context((LOCAL.svid("/server"),), BUNDLES))
        await running.write(b"after")
        assert await running.read() == b"after"
        await echo(channel)(b"on the same connection")
        await cut(channel)
        assert await running.code() == grpc.StatusCode.UNAVAILABLE
        await echo(channel)(b"on the next", wait_for_ready=True)
        shown = [chain[0].serial_number for chain in talk.chains]
        assert shown == [old, old, theirs.svid().leaf.serial_number]
        assert door.accepted == 2


async def test_every_connection_of_one_channel_shows_the_svid_of_its_moment(
    ours: MemorySource, theirs: MemorySource, talk: Talk
) -> None:
    serials = []
    async with (
        served(new_server("aio", talk), ours) as door,
        grpc_channel(theirs, is_id(SERVER), door.address, options=AT_ONCE) as channel,
    ):
        for _ in range(10):
            theirs.replace(X509Context((LOCAL.svid("/client"),), BUNDLES))
            ours.replace(X509Context((LOCAL.svid("/server"),), BUNDLES))
            serials.append(theirs.svid().leaf.serial_number)
            await echo(channel)(b"", wait_for_ready=True)
            await cut(channel)
            await until(lambda: not door.connections)
    assert [chain[0].serial_number for chain in talk.chains] == serials


@pytest.mark.parametrize("kind", KINDS)
async def test_a_removed_root_ends_no_stream_and_admits_nobody_new_until_the_client_has_rotated(
    kind: str, ours: MemorySource, theirs: MemorySource, talk: Talk, refusals: Refusals
) -> None:
    async with (
        served(new_server(kind, talk), ours, on_refused=refusals) as door,
        grpc_channel(theirs, is_id(SERVER), door.address, options=AT_ONCE) as channel,
    ):
        running = channel.stream_stream(CHAT)(None)
        await running.write(b"before")
        assert await running.read() == b"before"
        theirs.replace(X509Context((LOCAL.svid("/client"),), OF_BOTH))
        ours.replace(X509Context((NEW.svid("/server"),), BundleSet((NEW.bundle(),))))
        await running.write(b"after")
        assert await running.read() == b"after"
        await cut(channel)
        assert await running.code() == grpc.StatusCode.UNAVAILABLE
        with pytest.raises(grpc.aio.AioRpcError):
            await echo(channel)(b"", wait_for_ready=True, timeout=0.5)
        await until(lambda: refusals.reasons)
        assert isinstance(refusals.reasons[0], VerificationError)
        assert "does not chain" in str(refusals.reasons[0])
        theirs.replace(X509Context((NEW.svid("/client"),), OF_BOTH))
        assert await echo(channel)(b"hello", wait_for_ready=True, timeout=60) == b"hello"
        assert talk.callers == [CLIENT, CLIENT]
