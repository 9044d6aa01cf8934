"""A handler knows who calls, with the whole chain; whoever came past the door is nobody."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import grpc
import pytest

from istio_auth.authorize import any_id, is_id
from istio_auth.errors import NotAuthenticated
from istio_auth.grpc import (
    grpc_channel,
    peer_chain,
    peer_id,
)
from istio_auth.sources.memory import MemorySource
from tests.fakes.authority import FakeAuthority
from tests.fakes.waiting import until
from tests.integration.grpc.service import (
    CLIENT,
    ECHO,
    INTERCEPTORS,
    KINDS,
    SERVER,
    Talk,
    cut,
    echo,
    new_server,
    served,
)
from tests.vectors.x509_svid import BUNDLES, LOCAL


@pytest.mark.parametrize("kind", KINDS)
async def test_the_whole_chain_of_the_caller_is_there(kind: str, talk: Talk) -> None:
    between = FakeAuthority(parent=LOCAL, now=LOCAL.now)
    svid = between.svid("/client")
    async with (
        served(new_server(kind, talk)) as door,
        grpc_channel(MemorySource.of(svid, *BUNDLES), is_id(SERVER), door.address) as channel,
    ):
        await echo(channel)(b"")
    assert talk.callers == [CLIENT]
    assert talk.chains == [(svid.leaf, between.certificate)]


@pytest.mark.parametrize("kind", KINDS)
async def test_whoever_comes_past_the_door_is_nobody(
    kind: str, talk: Talk, theirs: MemorySource, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Through a port that the application added, or straight to the private socket."""
    rules = {"/": any_id()}
    server = new_server(kind, talk, interceptors=[INTERCEPTORS[kind](rules)])
    server.add_insecure_port(past := f"unix:{tmp_path}/past.sock")
    async with served(server) as door:
        for target in (past, door._door.target):
            async with grpc.aio.insecure_channel(target) as stranger:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await echo(stranger)(b"", timeout=60)
            assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
            assert caught.value.details() == "not authenticated"
        assert talk.callers == []
        assert "did not come through the door" in caplog.text
        async with grpc_channel(theirs, is_id(SERVER), door.address) as channel:
            assert await echo(channel)(b"hello") == b"hello"


async def test_a_handler_that_asks_for_nobody_is_told_so(tmp_path: Path) -> None:
    asked: list[str] = []

    async def who(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        for question in (peer_id, peer_chain):
            with pytest.raises(NotAuthenticated) as caught:
                question(context)
            asked.append(str(caught.value))
        return request

    server = grpc.aio.server()
    methods = {"Echo": grpc.unary_unary_rpc_method_handler(who)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Talk", methods),))
    server.add_insecure_port(past := f"unix:{tmp_path}/past.sock")
    async with served(server), grpc.aio.insecure_channel(past) as stranger:
        await echo(stranger)(b"")
    assert len(asked) == 2
    assert all("did not come through the door" in reason for reason in asked)


async def test_a_caller_whose_connection_has_ended_is_nobody_any_more(theirs: MemorySource) -> None:
    told: list[str] = []

    async def stay(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        told.append(str(peer_id(context)))
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await until(lambda: not door.connections)
            with pytest.raises(NotAuthenticated) as caught:
                peer_id(context)
            told.append(str(caught.value))
            raise
        return request

    server = grpc.aio.server()
    methods = {"Echo": grpc.unary_unary_rpc_method_handler(stay)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Talk", methods),))
    async with (
        served(server) as door,
        grpc_channel(theirs, is_id(SERVER), door.address) as channel,
    ):
        call = echo(channel)(b"")
        await until(lambda: told)
        await cut(channel)
        await until(lambda: len(told) == 2)
        assert told[0] == str(CLIENT)
        assert "its connection has ended" in told[1]
        with pytest.raises(grpc.aio.AioRpcError):
            await call


async def test_two_servers_of_one_process_know_their_own_callers(theirs: MemorySource) -> None:
    first, second = Talk(), Talk()
    async with (
        served(new_server("aio", first)) as one,
        served(new_server("blocking", second)) as two,
        grpc_channel(theirs, is_id(SERVER), one.address) as to_one,
        grpc_channel(MemorySource.of(LOCAL.svid("/other"), *BUNDLES), is_id(SERVER), two.address) as to_two,
    ):
        await asyncio.gather(echo(to_one)(b""), echo(to_two)(b""))
    assert [str(caller) for caller in (*first.callers, *second.callers)] == [
        "spiffe://cluster.local/client",
        "spiffe://cluster.local/other",
    ]


async def test_no_log_line_names_who_was_let_through_as_refused(
    talk: Talk, theirs: MemorySource, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "istio_auth"):
        async with (
            served(new_server("aio", talk)) as door,
            grpc_channel(theirs, is_id(SERVER), door.address) as channel,
        ):
            await channel.unary_unary(ECHO)(b"")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
