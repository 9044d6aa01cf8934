"""Two real sidecars: what the client side accepts, what passes between them, and what happens when secrets change."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta

import aiohttp
import grpc
import pytest
from aiohttp import web

from deploy.demo.client import CallFailed, http_get, tcp_echo
from istio_auth.bundle import BundleSet
from istio_auth.envoy.endpoint import HostPort
from istio_auth.envoy.spec import Mode, Protocol
from istio_auth.x509_source import X509Context
from tests.fakes.authority import FakeAuthority
from tests.fakes.sds import FakeAgent
from tests.fakes.tcp import closed_port
from tests.interop.mesh import (
    BACKEND,
    FRONTEND,
    INTRUDER,
    Mesh,
    Workload,
    going_to,
    holding,
    letting_in,
    running_mesh,
)

CLIENT_SSL = "cluster.outbound_backend.ssl"
SERVER_SSL = "listener.inbound_web.ssl"


@pytest.fixture
async def mesh() -> AsyncIterator[Mesh]:
    async with running_mesh() as mesh:
        yield mesh


async def backend_of(mesh: Mesh, authority: FakeAuthority, **changes: object) -> Workload:
    listener = letting_in(FRONTEND, **changes)  # type: ignore[arg-type]  # its fields, by name
    return await mesh.workload(holding(authority.svid(BACKEND.path), authority.bundle()), inbound=(listener,))


async def frontend_of(mesh: Mesh, authority: FakeAuthority, backend: Workload, **changes: object) -> Workload:
    upstream = going_to(backend.ports["inbound_web"], BACKEND, **changes)  # type: ignore[arg-type]  # as above
    return await mesh.workload(holding(authority.svid(FRONTEND.path), authority.bundle()), upstreams=(upstream,))


async def refused(workload: Workload, counter: str, port: int) -> None:
    with pytest.raises(CallFailed, match="503"):
        await http_get(port)
    assert await workload.count(counter) >= 1  # Envoy tries again when no connection came about


class TestServerIdentity:
    async def test_the_expected_server_is_accepted_and_nobody_forges_the_caller(
        self, mesh: Mesh, authority: FakeAuthority
    ) -> None:
        backend = await backend_of(mesh, authority)
        frontend = await frontend_of(mesh, authority, backend)
        forged = {"x-forwarded-client-cert": f"URI={INTRUDER}"}
        answer = await http_get(frontend.ports["outbound_backend"], headers=forged)
        assert (answer.workload, answer.caller) == ("backend", str(FRONTEND))

    async def test_a_server_with_another_name_is_refused(self, mesh: Mesh, authority: FakeAuthority) -> None:
        context = holding(authority.svid(INTRUDER.path), authority.bundle())
        impostor = await mesh.workload(context, inbound=(letting_in(FRONTEND),))
        frontend = await frontend_of(mesh, authority, impostor)
        await refused(frontend, f"{CLIENT_SSL}.fail_verify_san", frontend.ports["outbound_backend"])
        impostor.agent.replace(holding(authority.svid(BACKEND.path), authority.bundle()))
        await until_answered(frontend.ports["outbound_backend"])

    async def test_a_server_of_a_foreign_issuer_is_refused(self, mesh: Mesh, authority: FakeAuthority) -> None:
        foreign = FakeAuthority(str(authority.trust_domain))
        context = holding(foreign.svid(BACKEND.path), authority.bundle())
        impostor = await mesh.workload(context, inbound=(letting_in(FRONTEND),))
        frontend = await frontend_of(mesh, authority, impostor)
        await refused(frontend, f"{CLIENT_SSL}.fail_verify_error", frontend.ports["outbound_backend"])
        impostor.agent.replace(holding(authority.svid(BACKEND.path), authority.bundle()))
        await until_answered(frontend.ports["outbound_backend"])

    async def test_plaintext_is_never_a_fallback(self, mesh: Mesh, authority: FakeAuthority) -> None:
        backend = await backend_of(mesh, authority)
        upstream = going_to(backend.application.http_port, BACKEND)
        context = holding(authority.svid(FRONTEND.path), authority.bundle())
        frontend = await mesh.workload(context, upstreams=(upstream,))
        await refused(frontend, f"{CLIENT_SSL}.connection_error", frontend.ports["outbound_backend"])


class TestWhatPasses:
    async def test_tcp(self, mesh: Mesh, authority: FakeAuthority) -> None:
        backend = await backend_of(mesh, authority, protocol=Protocol.TCP)
        frontend = await frontend_of(mesh, authority, backend, protocol=Protocol.TCP)
        await tcp_echo(frontend.ports["outbound_backend"], text=b"\x00\xff" * 500)

    async def test_a_permissive_server_of_tcp_takes_a_sidecar_for_one_of_the_mesh(
        self, mesh: Mesh, authority: FakeAuthority
    ) -> None:
        backend = await backend_of(mesh, authority, protocol=Protocol.TCP, mode=Mode.PERMISSIVE)
        frontend = await frontend_of(mesh, authority, backend, protocol=Protocol.TCP)
        await tcp_echo(frontend.ports["outbound_backend"])
        assert await backend.count(f"{SERVER_SSL}.handshake") == 1

    async def test_a_permissive_server_of_http_takes_a_sidecar_for_one_of_the_mesh(
        self, mesh: Mesh, authority: FakeAuthority
    ) -> None:
        backend = await backend_of(mesh, authority, mode=Mode.PERMISSIVE)
        frontend = await frontend_of(mesh, authority, backend)
        assert (await http_get(frontend.ports["outbound_backend"])).caller == str(FRONTEND)

    async def test_the_key_exchange_is_hybrid(self, mesh: Mesh, authority: FakeAuthority) -> None:
        backend = await backend_of(mesh, authority)
        frontend = await frontend_of(mesh, authority, backend)
        await http_get(frontend.ports["outbound_backend"])
        assert await frontend.count(f"{CLIENT_SSL}.curves.X25519MLKEM768") == 1
        assert await frontend.count(f"{CLIENT_SSL}.versions.TLSv1.3") == 1

    async def test_grpc_with_its_trailers(self, mesh: Mesh, authority: FakeAuthority) -> None:
        server = grpc.aio.server()
        port = server.add_insecure_port("127.0.0.1:0")

        async def reverse(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
            proof = dict(context.invocation_metadata() or ())["x-forwarded-client-cert"]
            context.set_trailing_metadata((("caller", str(proof).rpartition("URI=")[2]),))
            return request[::-1]

        method = grpc.unary_unary_rpc_method_handler(reverse)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", {"Reverse": method}),))
        await server.start()
        listener = replace(letting_in(FRONTEND, protocol=Protocol.HTTP2), forward=HostPort("127.0.0.1", port))
        context = holding(authority.svid(BACKEND.path), authority.bundle())
        backend = await mesh.workload(context, inbound=(listener,), own_application=False)
        frontend = await frontend_of(mesh, authority, backend, protocol=Protocol.HTTP2)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{frontend.ports['outbound_backend']}") as channel:
            call = channel.unary_unary("/test.Echo/Reverse", _as_is, _as_is)(b"abc")
            assert await call == b"cba"
            assert dict(await call.trailing_metadata())["caller"] == str(FRONTEND)
        await server.stop(0)

    async def test_websockets(self, mesh: Mesh, authority: FakeAuthority) -> None:
        async def echo(request: web.Request) -> web.WebSocketResponse:
            socket = web.WebSocketResponse()
            await socket.prepare(request)
            async for message in socket:
                await socket.send_str(message.data + request.headers["x-forwarded-client-cert"].rpartition("URI=")[2])
            return socket

        app = web.Application()
        app.router.add_get("/", echo)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        forward = HostPort("127.0.0.1", runner.addresses[0][1])
        listener = replace(letting_in(FRONTEND), forward=forward)
        context = holding(authority.svid(BACKEND.path), authority.bundle())
        backend = await mesh.workload(context, inbound=(listener,), own_application=False)
        frontend = await frontend_of(mesh, authority, backend)
        url = f"ws://127.0.0.1:{frontend.ports['outbound_backend']}/"
        async with aiohttp.ClientSession() as http, http.ws_connect(url) as socket:
            await socket.send_str("hello ")
            assert await socket.receive_str(timeout=60) == f"hello {FRONTEND}"
        await runner.cleanup()


class TestSecrets:
    async def test_a_new_certificate_shows_at_the_next_handshake(self, mesh: Mesh, authority: FakeAuthority) -> None:
        backend = await backend_of(mesh, authority, protocol=Protocol.TCP)
        frontend = await frontend_of(mesh, authority, backend, protocol=Protocol.TCP)
        serials = []
        for _ in range(3):
            svid = authority.svid(FRONTEND.path)
            frontend.agent.replace(holding(svid, authority.bundle()))
            await presents(frontend, svid.leaf.serial_number)
            await tcp_echo(frontend.ports["outbound_backend"])
            serials.append(svid.leaf.serial_number)
        lines = await logged(backend, 3)
        assert [int(line["peer_serial"], 16) for line in lines] == serials
        assert {line["peer"] for line in lines} == {str(FRONTEND)}

    async def test_http_connections_make_way_for_new_certificates(self, mesh: Mesh, authority: FakeAuthority) -> None:
        backend = await backend_of(mesh, authority)
        upstream = going_to(backend.ports["inbound_web"], BACKEND)
        context = holding(authority.svid(FRONTEND.path), authority.bundle())
        age = timedelta(milliseconds=300)
        frontend = await mesh.workload(context, upstreams=(upstream,), max_connection_age=age)
        async with asyncio.timeout(60):
            while await frontend.count("cluster.outbound_backend.upstream_cx_http2_total") < 4:
                await http_get(frontend.ports["outbound_backend"])
        assert await frontend.count("cluster.outbound_backend.upstream_cx_max_duration_reached") >= 3

    async def test_a_root_that_is_gone_vouches_no_more(self, mesh: Mesh, authority: FakeAuthority) -> None:
        backend = await backend_of(mesh, authority)
        client = mesh.client(authority.svid(FRONTEND.path))
        port = backend.ports["inbound_web"]
        await http_get(port, tls=client)
        successor = FakeAuthority(str(authority.trust_domain))
        backend.agent.replace(holding(authority.svid(BACKEND.path), successor.bundle()))
        async with asyncio.timeout(60):
            while await backend.count(f"{SERVER_SSL}.fail_verify_error") == 0:
                try:
                    await http_get(port, tls=client)
                except CallFailed:
                    continue
        await http_get(port, tls=mesh.client(successor.svid(FRONTEND.path)))

    async def test_a_listener_stays_closed_until_there_is_a_certificate(
        self, mesh: Mesh, authority: FakeAuthority
    ) -> None:
        port = closed_port()
        listener = replace(letting_in(FRONTEND), listen=HostPort("127.0.0.1", port))
        backend = await mesh.workload(None, inbound=(listener,), ready=False)
        async with asyncio.timeout(60):
            await backend.agent.asked.wait()
        client = mesh.client(authority.svid(FRONTEND.path))
        with pytest.raises(CallFailed, match="ConnectionRefusedError"):
            await http_get(port, tls=client)
        backend.agent.replace(holding(authority.svid(BACKEND.path), authority.bundle()))
        await backend.envoy.wait_ready()
        await http_get(port, tls=client)

    async def test_a_sidecar_outlives_its_agent_and_finds_the_next_one(
        self, mesh: Mesh, authority: FakeAuthority
    ) -> None:
        backend = await backend_of(mesh, authority)
        port, client = backend.ports["inbound_web"], mesh.client(authority.svid(FRONTEND.path))
        await backend.agent._server.stop(0)
        await http_get(port, tls=client)
        svid = authority.svid(BACKEND.path)
        async with FakeAgent(backend.agent.path, holding(svid, authority.bundle())):
            await presents(backend, svid.leaf.serial_number)
            await http_get(port, tls=client)

    async def test_no_session_is_resumed(self, mesh: Mesh, authority: FakeAuthority) -> None:
        backend = await backend_of(mesh, authority, protocol=Protocol.TCP)
        client = mesh.client(authority.svid(FRONTEND.path))
        client.maximum_version = ssl.TLSVersion.TLSv1_2  # whose sessions the client has at once
        first = await asyncio.to_thread(handshake, client, backend.ports["inbound_web"], None)
        again = await asyncio.to_thread(handshake, client, backend.ports["inbound_web"], first.session)
        assert not again.session_reused
        assert await backend.count(f"{SERVER_SSL}.session_reused") == 0
        assert await backend.count(f"{SERVER_SSL}.handshake") == 2


class TestFederation:
    async def test_a_peer_of_another_trust_domain_needs_that_domains_own_root(
        self, mesh: Mesh, authority: FakeAuthority, foreign_authority: FakeAuthority
    ) -> None:
        partner = foreign_authority.svid("/partner")
        bundles = BundleSet((authority.bundle(), foreign_authority.bundle()))
        context = X509Context((authority.svid(BACKEND.path),), bundles)
        backend = await mesh.workload(context, inbound=(letting_in(FRONTEND, partner.id),))
        port = backend.ports["inbound_web"]
        assert (await http_get(port, tls=mesh.client(partner))).caller == str(partner.id)
        assert (await http_get(port, tls=mesh.client(authority.svid(FRONTEND.path)))).caller == str(FRONTEND)
        ours_by_them = foreign_authority.svid(uris=[str(FRONTEND)])
        with pytest.raises(CallFailed):
            await http_get(port, tls=mesh.client(ours_by_them))
        assert await backend.count(f"{SERVER_SSL}.fail_verify_error") == 1


def _as_is(message: bytes) -> bytes:
    return message


async def presents(workload: Workload, serial: int) -> None:
    """Wait until a sidecar has taken a certificate."""
    async with asyncio.timeout(60):
        while serial not in await workload.envoy.serial_numbers():  # noqa: ASYNC110  # Envoy tells no event of it
            await asyncio.sleep(0.02)


async def logged(workload: Workload, lines: int) -> list[dict[str, str]]:
    """The first lines of a sidecar's access log."""
    async with asyncio.timeout(60):
        while (found := workload.envoy.child.output.read_text()).count("\n") < lines:  # noqa: ASYNC110  # a file
            await asyncio.sleep(0.02)
    whole, _, _ = found.rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()]


async def until_answered(port: int) -> None:
    """Call until the new secret is in use."""
    async with asyncio.timeout(60):
        while True:
            try:
                await http_get(port)
            except CallFailed:
                continue
            return


def handshake(context: ssl.SSLContext, port: int, session: ssl.SSLSession | None) -> ssl.SSLSocket:
    """A connection after its handshake and one exchange of bytes."""
    with socket.create_connection(("127.0.0.1", port)) as raw, context.wrap_socket(raw, session=session) as tls:
        tls.sendall(b"x")
        assert tls.recv(1) == b"x"
        return tls
