"""Volumes with sockets: each pod has SDS and the Workload API by itself, and nobody else's identity."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from istio_auth.errors import Exhausted
from istio_auth.pem import read_der_certificates
from istio_auth.proto import workload_api_pb2 as messages
from istio_auth.rpc.channel import Channel
from istio_auth.spiffe_id import SpiffeID
from node_agent import limits
from node_agent.limits import LimitsSettings
from tests.fakes.ca import CAServer
from tests.fakes.clock import FakeClock
from tests.fakes.kubelet import Kubelet, Pod
from tests.fakes.running_agent import RunningAgent
from tests.fakes.sds_client import SDSStream
from tests.fakes.waiting import until, until_async
from tests.integration.csi.conftest import TOKEN, WEB
from tests.integration.csi.test_files import kept, nothing_is_left, pass_time

POD = Pod()
API = SpiffeID.parse("spiffe://cluster.local/ns/shop/sa/api")
METHOD = "/SpiffeWorkloadAPI/FetchX509SVID"
HEADER = (("workload.spiffe.io", "true"),)


def socket_of(kubelet: Kubelet, pod: Pod = POD) -> Path:
    """The socket, where the pod sees it."""
    return kubelet.target(pod) / pod.attributes.get("socket", "agent.sock")


async def first(path: Path) -> messages.X509SVIDResponse:
    """What the Workload API says first."""
    async with grpc.aio.insecure_channel(f"unix:{path}", options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        call = channel.unary_stream(METHOD, None, messages.X509SVIDResponse.FromString)(b"", metadata=HEADER)
        async with asyncio.timeout(60):
            found = await call.read()
        assert isinstance(found, messages.X509SVIDResponse)
        return found


async def test_a_pod_is_served_its_identity_by_both_apis_as_soon_as_it_is_published(
    agent: RunningAgent, kubelet: Kubelet, server: CAServer
) -> None:
    await kubelet.publish(POD, TOKEN)
    async with SDSStream(socket_of(kubelet), "default", "ROOTCA") as stream:
        await stream.receive()
        assert stream.svid().id == WEB
        assert stream.roots() == (server.ca.root.certificate,)
    (svid,) = (await first(socket_of(kubelet))).svids
    assert svid.spiffe_id == str(WEB)
    assert read_der_certificates(svid.x509_svid) == stream.svid().chain
    await kubelet.unpublish(POD)
    assert nothing_is_left(agent, kubelet, POD)


async def test_the_socket_has_the_name_that_the_pod_asks_for_and_health_is_answered_there(
    agent: RunningAgent, kubelet: Kubelet
) -> None:
    pod = Pod(attributes={"socket": "socket"})
    await kubelet.publish(pod, TOKEN)
    async with Channel(f"unix:{kubelet.target(pod) / 'socket'}") as channel:
        answer = await channel.unary(
            "/grpc.health.v1.Health/Check", HealthCheckRequest(), HealthCheckResponse, timeout=timedelta(seconds=60)
        )
    assert answer.status == HealthCheckResponse.SERVING


async def test_each_pod_has_its_own_identity_and_its_own_key(
    agent: RunningAgent, kubelet: Kubelet, server: CAServer
) -> None:
    server.ca.pod_tokens["token-of-api"] = API
    twin, other = Pod("web-1"), Pod("api-0", service_account="api")
    await asyncio.gather(
        kubelet.publish(POD, TOKEN), kubelet.publish(twin, TOKEN), kubelet.publish(other, "token-of-api")
    )
    (mine,), (twins,), (others,) = [(await first(socket_of(kubelet, pod))).svids for pod in (POD, twin, other)]
    assert (mine.spiffe_id, twins.spiffe_id, others.spiffe_id) == (str(WEB), str(WEB), str(API))
    assert mine.x509_svid_key != twins.x509_svid_key
    async with SDSStream(socket_of(kubelet), "default", str(API)) as stream:
        await stream.receive()
        assert stream.secrets.keys() == {"default"}


async def test_what_opens_the_sockets_of_pods_opens_no_driver(agent: RunningAgent, kubelet: Kubelet) -> None:
    await kubelet.publish(POD, TOKEN)
    channel = grpc.aio.insecure_channel(f"unix:{socket_of(kubelet)}", options=[("grpc.use_local_subchannel_pool", 1)])
    async with channel:
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await channel.unary_unary("/csi.v1.Node/NodeGetInfo", None, None)(b"")
    assert refusal.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_pod_that_asks_for_a_token_hears_that_there_are_none(agent: RunningAgent, kubelet: Kubelet) -> None:
    await kubelet.publish(POD, TOKEN)
    channel = grpc.aio.insecure_channel(f"unix:{socket_of(kubelet)}", options=[("grpc.use_local_subchannel_pool", 1)])
    async with channel:
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await channel.unary_unary("/SpiffeWorkloadAPI/FetchJWTSVID", None, None)(b"", metadata=HEADER)
    words = "JWT-SVIDs are not served by this agent"
    assert (refusal.value.code(), refusal.value.details()) == (grpc.StatusCode.UNIMPLEMENTED, words)


async def test_a_renewed_certificate_is_pushed_to_the_pod(
    agent: RunningAgent, kubelet: Kubelet, clock: FakeClock
) -> None:
    kubelet.ends = clock.now() + timedelta(hours=2)
    await kubelet.publish(POD, TOKEN)
    async with SDSStream(socket_of(kubelet), "default") as stream:
        await stream.receive()
        before = stream.svid()
        pass_time(agent, timedelta(minutes=40))
        await stream.receive()
        assert stream.svid().leaf != before.leaf
        assert stream.svid().id == WEB


async def test_the_bundle_that_pods_hold_is_counted_and_reported(agent: RunningAgent, kubelet: Kubelet) -> None:
    await kubelet.publish(POD, TOKEN)
    assert agent.agent.csi is not None
    csi = agent.agent.csi
    async with SDSStream(socket_of(kubelet), "default", "ROOTCA") as stream:
        await stream.receive()
        await until(lambda: csi.consumers().current == 1)
    files = Pod("files-0", attributes={"form": "files"})
    await kubelet.publish(files, TOKEN)
    await until(lambda: (csi.consumers().total, csi.consumers().current) == (1, 1))


async def limited(agent: RunningAgent, **limits: int) -> None:
    """Have the agent begin anew with other limits."""
    await agent.stop()
    agent.config = replace(agent.config, limits=LimitsSettings(**limits))
    await agent.start()


async def test_a_pod_that_opens_too_much_is_refused_and_no_other_pod_notices(
    agent: RunningAgent, kubelet: Kubelet
) -> None:
    await limited(agent, streams_per_pod=3)
    twin = Pod("web-1")
    await asyncio.gather(kubelet.publish(POD, TOKEN), kubelet.publish(twin, TOKEN))
    async with AsyncExitStack() as stack:
        for _ in range(3):
            await (await stack.enter_async_context(SDSStream(socket_of(kubelet), "default"))).receive()
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await first(socket_of(kubelet))
        assert refusal.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "limits.streams_per_pod" in (refusal.value.details() or "")
        assert (await first(socket_of(kubelet, twin))).svids[0].spiffe_id == str(WEB)
    await until_async(lambda: let_in(kubelet))  # as soon as the others are seen to have left


async def let_in(kubelet: Kubelet) -> bool:
    """Whether the pod is served, or still at its limit."""
    try:
        return (await first(socket_of(kubelet))).svids[0].spiffe_id == str(WEB)
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
            raise
        return False


async def test_a_pod_that_asks_too_often_is_refused_and_no_other_pod_of_its_user_notices(
    agent: RunningAgent, kubelet: Kubelet
) -> None:
    await limited(agent, request_burst=4, requests_per_second=1)
    twin = Pod("web-1")
    await asyncio.gather(kubelet.publish(POD, TOKEN), kubelet.publish(twin, TOKEN))
    outcomes = await asyncio.gather(*(first(socket_of(kubelet)) for _ in range(40)), return_exceptions=True)
    refusals = [each for each in outcomes if isinstance(each, grpc.aio.AioRpcError)]
    assert {each.code() for each in refusals} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert all("limits.requests_per_second" in (each.details() or "") for each in refusals)
    assert (await first(socket_of(kubelet, twin))).svids[0].spiffe_id == str(WEB)


async def test_who_asks_for_its_health_alone_has_the_same_budget(agent: RunningAgent, kubelet: Kubelet) -> None:
    await limited(agent, request_burst=4, requests_per_second=1)
    await kubelet.publish(POD, TOKEN)
    async with Channel(f"unix:{socket_of(kubelet)}") as channel:
        calls = (
            channel.unary(
                "/grpc.health.v1.Health/Check", HealthCheckRequest(), HealthCheckResponse, timeout=timedelta(seconds=60)
            )
            for _ in range(40)
        )
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
    answered = [each for each in outcomes if isinstance(each, HealthCheckResponse)]
    refused = [each for each in outcomes if isinstance(each, Exhausted)]
    assert len(answered) >= 4
    assert refused
    assert len(answered) + len(refused) == 40
    assert all("limits.requests_per_second" in str(each) for each in refused)


async def test_connections_are_counted_by_pod_and_not_by_user(
    agent: RunningAgent, kubelet: Kubelet, monkeypatch: pytest.MonkeyPatch
) -> None:
    await agent.stop()
    monkeypatch.setattr(limits, "_CONNECTIONS_PER_POD", 2)
    await agent.start()
    twin = Pod("web-1")
    await asyncio.gather(kubelet.publish(POD, TOKEN), kubelet.publish(twin, TOKEN))
    open_ones = [await asyncio.open_unix_connection(socket_of(kubelet)) for _ in range(2)]
    for reader, _ in open_ones:
        assert await reader.read(1)  # the server speaks first
    reader, writer = await asyncio.open_unix_connection(socket_of(kubelet))
    assert not await reader.read(1)
    assert (await first(socket_of(kubelet, twin))).svids[0].spiffe_id == str(WEB)
    for each in (writer, *(one for _, one in open_ones)):
        each.close()


async def test_a_pod_that_is_unpublished_has_no_identity_any_more(agent: RunningAgent, kubelet: Kubelet) -> None:
    await kubelet.publish(POD, TOKEN)
    channel = grpc.aio.insecure_channel(f"unix:{socket_of(kubelet)}", options=[("grpc.use_local_subchannel_pool", 1)])
    async with channel:
        call = channel.unary_stream(METHOD, None, None)(b"", metadata=HEADER)
        await call.read()
        await kubelet.unpublish(POD)
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await call.read()
        assert refusal.value.code() is grpc.StatusCode.PERMISSION_DENIED
        with pytest.raises(grpc.aio.AioRpcError) as again:
            await channel.unary_stream(METHOD, None, None)(b"", metadata=HEADER).read()
        assert again.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_after_a_restart_the_same_socket_serves_the_same_certificate_without_the_ca(
    agent: RunningAgent, kubelet: Kubelet, server: CAServer
) -> None:
    await kubelet.publish(POD, TOKEN)
    before = (await first(socket_of(kubelet))).svids[0].x509_svid
    folder = socket_of(kubelet).resolve().parent.stat()
    await agent.stop()
    await server.away()
    await agent.start()
    assert (await first(socket_of(kubelet))).svids[0].x509_svid == before
    assert socket_of(kubelet).resolve().parent.stat().st_ino == folder.st_ino  # what running containers see
    await kubelet.unpublish(POD)
    assert not kept(agent)


async def test_a_certificate_that_ended_while_no_token_came_is_served_no_more_and_the_next_republish_mends_it(
    agent: RunningAgent, kubelet: Kubelet, clock: FakeClock
) -> None:
    await kubelet.publish(POD, TOKEN)
    assert agent.agent.csi is not None
    (volume,) = agent.agent.csi.volumes.all()
    pass_time(agent, timedelta(hours=2))
    await until(lambda: volume.held is None)
    kubelet.ends = clock.now() + timedelta(hours=1)
    await kubelet.publish(POD, TOKEN)
    assert (await first(socket_of(kubelet))).svids[0].spiffe_id == str(WEB)
