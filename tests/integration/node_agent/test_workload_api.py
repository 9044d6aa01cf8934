"""The Workload API on the agent's socket: each requirement on its server, under the name that the standard gives it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
import structlog
from cryptography.hazmat.primitives.serialization import load_der_private_key
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse

from istio_auth.pem import read_der_certificates
from istio_auth.proto import workload_api_pb2 as messages
from tests.fakes.ca import CAServer
from tests.fakes.certificate_client import FakeCA
from tests.fakes.clock import FakeClock
from tests.fakes.running_agent import RunningAgent, registration
from tests.fakes.waiting import until

SERVICE = "/SpiffeWorkloadAPI"
SERVED = ("FetchX509SVID", "FetchX509Bundles")
HEADER = (("workload.spiffe.io", "true"),)
WEB = "spiffe://cluster.local/web"


@pytest.fixture
async def server(clock: FakeClock) -> AsyncIterator[CAServer]:
    async with CAServer(FakeCA(clock)) as server:
        server.register(web=registration("/web"))
        yield server


@pytest.fixture
async def agent(server: CAServer, tmp_path: Path, clock: FakeClock) -> AsyncIterator[RunningAgent]:
    async with RunningAgent(server, tmp_path, clock) as agent:
        agent.give_token()
        agent.agent.identity.look_again()
        await agent.joined()
        await agent.served("/web")
        yield agent


class Workload:
    """Calls the API as any gRPC client would."""

    def __init__(self, path: Path) -> None:
        self._channel = grpc.aio.insecure_channel(f"unix:{path}", options=[("grpc.use_local_subchannel_pool", 1)])

    async def close(self) -> None:
        await self._channel.close(None)

    def call(
        self, method: str, request: bytes = b"", *, metadata: Sequence[tuple[str, str]] = HEADER
    ) -> grpc.aio.UnaryStreamCall[bytes, bytes]:
        return self._channel.unary_stream(method, None, None)(request, metadata=metadata)

    def svids(self) -> grpc.aio.UnaryStreamCall[bytes, bytes]:
        return self.call(f"{SERVICE}/FetchX509SVID")

    async def refusal(self, method: str, *, metadata: Sequence[tuple[str, str]] = HEADER) -> tuple[str, str]:
        """The code and the words by which a call was refused."""
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async with asyncio.timeout(60):
                await self.call(f"{SERVICE}/{method}", metadata=metadata).read()
        return caught.value.code().name, caught.value.details() or ""


@pytest.fixture
async def workload(agent: RunningAgent) -> AsyncIterator[Workload]:
    async with at(agent.socket) as workload:
        yield workload


@asynccontextmanager
async def at(path: Path) -> AsyncIterator[Workload]:
    workload = Workload(path)
    try:
        yield workload
    finally:
        await workload.close()


async def state(call: grpc.aio.UnaryStreamCall[bytes, bytes]) -> messages.X509SVIDResponse:
    """The next message of a stream."""
    async with asyncio.timeout(60):
        return messages.X509SVIDResponse.FromString(await _message(call))


def names(response: messages.X509SVIDResponse) -> list[str]:
    return [svid.spiffe_id for svid in response.svids]


class TestX509SVIDs:
    async def test_wa_03_the_whole_state_comes_at_once(self, agent: RunningAgent, workload: Workload) -> None:
        (svid,) = (await state(workload.svids())).svids
        (held,) = agent.agent.cache.snapshot.held.values()
        assert svid.spiffe_id == WEB
        assert read_der_certificates(svid.x509_svid) == held.svid.chain
        assert read_der_certificates(svid.bundle) == agent.agent.trust.own.x509_authorities
        key = load_der_private_key(svid.x509_svid_key, None)
        assert key.public_key() == held.svid.leaf.public_key()

    async def test_wa_04_each_message_is_the_whole_state_again_and_only_changes_make_one(
        self, agent: RunningAgent, workload: Workload
    ) -> None:
        call = workload.svids()
        first = await state(call)
        agent.server.register(other=registration("/other", "socket:elsewhere"), web=registration("/web"))
        await until(lambda: len(agent.agent.cache.snapshot.held) == 2)  # which is nothing to this caller
        agent.server.register(api=registration("/api"), web=registration("/web"))
        second = await state(call)
        assert names(second) == ["spiffe://cluster.local/api", WEB]
        assert second.svids[1] == first.svids[0]

    async def test_wa_12_the_default_is_the_first_that_is_registered(
        self, agent: RunningAgent, workload: Workload
    ) -> None:
        agent.server.register(a=registration("/zebra"), b=registration("/ant"))
        await agent.served("/zebra", "/ant")
        assert names(await state(workload.svids())) == ["spiffe://cluster.local/zebra", "spiffe://cluster.local/ant"]

    async def test_wa_10_hints_are_given_once(self, agent: RunningAgent, workload: Workload) -> None:
        rows = {path: registration(path) for path in ("/a", "/b", "/c")}
        agent.server.register(
            a=replace(rows["/a"], hint="inside"),
            b=replace(rows["/b"], hint="inside"),
            c=replace(rows["/c"], hint="outside"),
        )
        await agent.served("/a", "/b", "/c")
        assert [svid.hint for svid in (await state(workload.svids())).svids] == ["inside", "", "outside"]

    async def test_wa_14_who_loses_its_last_identity_is_told_so_in_mid_stream(
        self, agent: RunningAgent, workload: Workload
    ) -> None:
        call = workload.svids()
        await state(call)
        agent.server.register(other=registration("/other", "socket:elsewhere"))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await state(call)
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
        agent.server.register(web=registration("/web"))
        await agent.served("/web")
        assert names(await state(workload.svids())) == [WEB]

    async def test_wa_13_a_caller_without_an_identity_is_refused_and_the_log_says_what_it_lacks(
        self, agent: RunningAgent, workload: Workload
    ) -> None:
        agent.server.register(web=registration("/web", "socket:elsewhere"))
        await until(lambda: all(len(each.selectors) == 2 for each in agent.agent.cache.snapshot.registrations))
        with structlog.testing.capture_logs() as lines:
            for method in ("FetchX509SVID", "FetchX509Bundles"):
                assert await workload.refusal(method) == ("PERMISSION_DENIED", "no identity issued")
        (first, _) = (line for line in lines if line["event"].startswith("no registration fits"))
        assert (first["nearest"], first["missing"]) == (WEB, ["socket:elsewhere"])

    async def test_a_renewal_reaches_every_open_stream(
        self, agent: RunningAgent, workload: Workload, clock: FakeClock
    ) -> None:
        call = workload.svids()
        before = (await state(call)).svids[0]
        (held,) = agent.agent.cache.snapshot.held.values()
        clock.advance(held.due - clock.now())
        agent.agent.renewals.look_again()
        after = (await state(call)).svids[0]
        assert after.spiffe_id == before.spiffe_id
        assert (after.x509_svid, after.x509_svid_key) != (before.x509_svid, before.x509_svid_key)


class TestBundles:
    async def test_wa_15_our_own_trust_domain_is_among_the_bundles(
        self, agent: RunningAgent, workload: Workload
    ) -> None:
        async with asyncio.timeout(60):
            answer = await _message(workload.call(f"{SERVICE}/FetchX509Bundles"))
        bundles = messages.X509BundlesResponse.FromString(answer).bundles
        assert set(bundles) == {"spiffe://cluster.local"}
        assert read_der_certificates(bundles["spiffe://cluster.local"]) == agent.agent.trust.own.x509_authorities

    async def test_streams_count_among_those_who_must_learn_of_a_new_root(
        self, agent: RunningAgent, workload: Workload
    ) -> None:
        call = workload.svids()
        await state(call)
        await until(lambda: agent.agent.workloads.workload_api.consumers().current == 1)
        assert agent.agent.workloads.workload_api.consumers().total == 1
        call.cancel()
        await until(lambda: agent.agent.workloads.workload_api.consumers().total == 0)


class TestTheEndpoint:
    @pytest.mark.parametrize(
        "metadata",
        [
            (),
            (("workload.spiffe.io", "True"),),
            (("workload.spiffe.io", ""),),
            (("workload.spiffe.io", "true"), ("workload.spiffe.io", "true")),
        ],
    )
    @pytest.mark.parametrize("method", [*SERVED, "FetchJWTSVID", "FetchWITBundles"])
    async def test_we_05_without_the_security_header_nobody_is_answered(
        self, workload: Workload, method: str, metadata: Sequence[tuple[str, str]]
    ) -> None:
        assert await workload.refusal(method, metadata=metadata) == (
            "INVALID_ARGUMENT",
            "security header missing from request",
        )
        if method in SERVED:
            async with asyncio.timeout(60):
                assert await workload.call(f"{SERVICE}/{method}").read()
        else:
            assert (await workload.refusal(method))[0] == "UNIMPLEMENTED"

    @pytest.mark.parametrize(
        ("method", "profile"),
        [
            ("FetchJWTSVID", "JWT-SVIDs"),
            ("FetchJWTBundles", "JWT-SVIDs"),
            ("ValidateJWTSVID", "JWT-SVIDs"),
            ("FetchWITSVID", "WIT-SVIDs"),
            ("FetchWITBundles", "WIT-SVIDs"),
        ],
    )
    async def test_wa_02_profiles_that_are_not_served_say_so(
        self, workload: Workload, method: str, profile: str
    ) -> None:
        assert await workload.refusal(method) == ("UNIMPLEMENTED", f"{profile} are not served by this agent")

    async def test_before_the_agent_knows_who_is_registered_it_is_unavailable_and_not_sure(
        self, server: CAServer, tmp_path: Path, clock: FakeClock
    ) -> None:
        async with RunningAgent(server, tmp_path, clock) as agent, at(agent.socket) as workload:
            assert await workload.refusal("FetchX509SVID") == ("UNAVAILABLE", "the agent can not serve anybody yet")
            agent.give_token()
            agent.agent.identity.look_again()
            await agent.served("/web")
            assert names(await state(workload.svids())) == [WEB]

    @pytest.mark.parametrize(
        "name", ["grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"]
    )
    async def test_we_11_reflection_describes_the_standards_own_names(self, workload: Workload, name: str) -> None:
        files = await described(workload, "SpiffeWorkloadAPI", reflection=name)
        assert set(files) == {"workloadapi.proto", "google/protobuf/struct.proto"}
        api = files["workloadapi.proto"]
        assert not api.package
        methods = {method.name: (method.input_type, method.output_type) for method in api.service[0].method}
        assert methods["FetchX509SVID"] == (".X509SVIDRequest", ".X509SVIDResponse")
        assert "istio_auth" not in str(api)

    async def test_we_11_reflection_describes_every_service_that_it_lists_and_each_of_their_methods(
        self, workload: Workload
    ) -> None:
        listed = await reflected(workload, ServerReflectionRequest(list_services=""))
        services = {each.name for each in listed.list_services_response.service}
        assert services == {
            "SpiffeWorkloadAPI",
            "envoy.service.secret.v3.SecretDiscoveryService",
            "grpc.health.v1.Health",
            "grpc.reflection.v1.ServerReflection",
            "grpc.reflection.v1alpha.ServerReflection",
        }
        for service in services:
            package, _, own = service.rpartition(".")
            (methods,) = (
                [method.name for method in each.method]
                for file in (await described(workload, service)).values()
                for each in file.service
                if (file.package, each.name) == (package, own)
            )
            for method in methods:
                assert await described(workload, f"{service}.{method}") == await described(workload, service)
        unknown = await reflected(workload, ServerReflectionRequest(file_containing_symbol="SpiffeWorkloadAPI.Nothing"))
        assert unknown.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]

    async def test_health_tells_whether_workloads_can_be_served(
        self, server: CAServer, tmp_path: Path, clock: FakeClock
    ) -> None:
        async def ask(workload: Workload, service: str) -> int:
            request = HealthCheckRequest(service=service).SerializeToString()
            call = workload.call("/grpc.health.v1.Health/Check", request, metadata=())
            return int(HealthCheckResponse.FromString(await _message(call)).status)

        async with RunningAgent(server, tmp_path, clock) as agent, at(agent.socket) as workload:
            watch = workload.call("/grpc.health.v1.Health/Watch", HealthCheckRequest().SerializeToString(), metadata=())
            assert await ask(workload, "SpiffeWorkloadAPI") == HealthCheckResponse.NOT_SERVING
            assert HealthCheckResponse.FromString(await _message(watch)).status == HealthCheckResponse.NOT_SERVING
            agent.give_token()
            agent.agent.identity.look_again()
            async with asyncio.timeout(60):
                assert HealthCheckResponse.FromString(await _message(watch)).status == HealthCheckResponse.SERVING
            assert await ask(workload, "SpiffeWorkloadAPI") == HealthCheckResponse.SERVING
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await ask(workload, "another")
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def reflected(
    workload: Workload, request: ServerReflectionRequest, reflection: str = "grpc.reflection.v1.ServerReflection"
) -> ServerReflectionResponse:
    """What reflection answers."""
    call = workload.call(f"/{reflection}/ServerReflectionInfo", request.SerializeToString(), metadata=())
    async with asyncio.timeout(60):
        return ServerReflectionResponse.FromString(await _message(call))


async def described(
    workload: Workload, symbol: str, *, reflection: str = "grpc.reflection.v1.ServerReflection"
) -> dict[str, FileDescriptorProto]:
    """The file that says what this is and those that it needs, by name."""
    answer = await reflected(workload, ServerReflectionRequest(file_containing_symbol=symbol), reflection)
    files = map(FileDescriptorProto.FromString, answer.file_descriptor_response.file_descriptor_proto)
    return {file.name: file for file in files}


async def _message(call: grpc.aio.UnaryStreamCall[bytes, bytes]) -> bytes:
    message = await call.read()
    assert isinstance(message, bytes)  # and not the end of the stream
    return message
