"""Who calls: known to each method, as the door learned it; and what came along with the call."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue

from istio_auth.door import TLSCaller, UnixCaller
from istio_auth.rpc.method import Call
from tests.integration.rpc.bench import Bench, ask, asking


@pytest.fixture
def calls(bench: Bench) -> list[Call]:
    """The calls that were answered."""
    calls: list[Call] = []

    async def answer(request: StringValue, call: Call) -> StringValue:
        calls.append(call)
        return request

    bench.answer = answer
    return calls


@pytest.mark.parametrize("kind", ["ours", "plain"])
async def test_a_tls_caller_is_known_by_its_certificate(bench: Bench, calls: list[Call], kind: str) -> None:
    if kind == "ours":
        async with bench.ours() as channel:
            await ask(channel)
    else:
        async with bench.plain() as plain:
            await asking(plain)(StringValue())
    (call,) = calls
    assert isinstance(call.caller, TLSCaller)
    assert str(call.caller.spiffe_id) == "spiffe://cluster.local/client"
    assert call.caller.address.startswith("127.0.0.1:")


async def test_a_caller_without_certificate_is_nobody(bench: Bench, calls: list[Call]) -> None:
    async with bench.plain(certificate=False) as channel:
        await asking(channel)(StringValue())
    assert isinstance(calls[0].caller, TLSCaller)
    assert (calls[0].caller.spiffe_id, calls[0].caller.chain) == (None, ())


async def test_a_process_is_known_by_its_credentials(bench: Bench, calls: list[Call]) -> None:
    async with bench.plain("unix") as channel:
        await asking(channel)(StringValue())
    caller = calls[0].caller
    assert isinstance(caller, UnixCaller)
    assert (caller.uid, caller.gid, caller.pid, caller.socket) == (os.getuid(), os.getgid(), os.getpid(), "bench")


async def test_two_callers_at_once_are_not_taken_for_each_other(bench: Bench, calls: list[Call]) -> None:
    async with bench.plain() as tls, bench.plain("unix") as unix, bench.plain(certificate=False) as nobody:
        for _ in range(3):
            for channel in (tls, unix, nobody):
                await asking(channel)(StringValue())
    told = [call.caller.spiffe_id if isinstance(call.caller, TLSCaller) else call.caller.socket for call in calls]
    assert [str(each) for each in told] == ["spiffe://cluster.local/client", "bench", "None"] * 3


async def test_who_did_not_come_through_the_door_is_refused(bench: Bench, calls: list[Call]) -> None:
    async with grpc.aio.insecure_channel(bench.door.target) as behind:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await asking(behind)(StringValue())
    assert failed.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert not calls
    async with bench.plain("unix") as through:
        await asking(through)(StringValue())
    assert len(calls) == 1


async def test_every_value_of_metadata_is_kept_in_its_order_and_binary_ones_are_not(
    bench: Bench, calls: list[Call]
) -> None:
    sent = (("authorization", "Bearer a"), ("x-bin", b"\0\1"), ("clusterid", ""), ("authorization", "Basic b"))
    async with bench.plain() as channel:
        await asking(channel)(StringValue(), metadata=sent)
    metadata = calls[0].metadata
    assert metadata["authorization"] == ("Bearer a", "Basic b")
    assert metadata["clusterid"] == ("",)
    assert "x-bin" not in metadata


async def test_every_call_has_an_id_of_its_own(bench: Bench, calls: list[Call]) -> None:
    async with bench.plain() as channel:
        for _ in range(5):
            await asking(channel)(StringValue())
    assert len({call.request_id for call in calls}) == 5


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_http_2_is_agreed_on_at_the_handshake(bench: Bench, version: ssl.TLSVersion) -> None:
    context = ssl.create_default_context(cadata=bench.authority.bundle().to_pem().decode())
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["http/1.1", "h2"])

    def agreed() -> tuple[str | None, str | None]:
        with (
            socket.create_connection(("127.0.0.1", bench.port), timeout=60) as connection,
            context.wrap_socket(connection, server_hostname="server.test") as tls,
        ):
            return tls.selected_alpn_protocol(), tls.version()

    assert await asyncio.to_thread(agreed) == ("h2", version.name.replace("_", "."))
