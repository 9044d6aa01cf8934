"""Our contexts and real sidecars, each as client and as server of the other, with certificates of one CA."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable

import aiohttp
import httpx
import pytest
import urllib3

from deploy.demo.client import CallFailed, http_get, tcp_echo
from istio_auth.authorize import any_id, is_id
from istio_auth.envoy.endpoint import HostPort
from istio_auth.envoy.spec import Inbound, Mode, Protocol
from istio_auth.errors import Fault, NotAuthorized, VerificationError
from istio_auth.peer import PeerRefused
from istio_auth.sources.memory import MemorySource
from istio_auth.spiffe_id import SpiffeID
from istio_auth.tls import client_context, peer_id, server_context
from tests.fakes.authority import FakeAuthority
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

SSL = "listener.inbound_web.ssl"
APPLICATION = SpiffeID.parse("spiffe://cluster.local/ns/demo/sa/application")


@pytest.fixture
async def mesh() -> AsyncIterator[Mesh]:
    async with running_mesh() as mesh:
        yield mesh


@pytest.fixture
def ours(authority: FakeAuthority) -> MemorySource:
    """What our own end holds: the frontend's identity."""
    return MemorySource.of(authority.svid(FRONTEND.path), authority.bundle())


async def backend_of(mesh: Mesh, authority: FakeAuthority, mode: Mode, protocol: Protocol = Protocol.HTTP) -> Workload:
    listener = letting_in(FRONTEND, mode=mode, protocol=protocol)
    return await mesh.workload(holding(authority.svid(BACKEND.path), authority.bundle()), inbound=(listener,))


async def with_asyncio(port: int, context: ssl.SSLContext) -> str:
    return (await http_get(port, tls=context)).caller


async def with_aiohttp(port: int, context: ssl.SSLContext) -> str:
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session,
        session.get(f"https://127.0.0.1:{port}/") as answer,
    ):
        return str((await answer.json())["caller"])


async def with_async_httpx(port: int, context: ssl.SSLContext) -> str:
    async with httpx.AsyncClient(verify=context, timeout=60) as client:
        answer = await client.get(f"https://127.0.0.1:{port}/")
    assert answer.http_version == "HTTP/1.1"
    return str(answer.json()["caller"])


async def with_httpx_and_http2(port: int, context: ssl.SSLContext) -> str:
    def get() -> httpx.Response:
        with httpx.Client(verify=context, http2=True, timeout=60) as client:
            return client.get(f"https://127.0.0.1:{port}/")

    answer = await asyncio.to_thread(get)
    assert answer.http_version == "HTTP/2"
    return str(answer.json()["caller"])


async def with_urllib3(port: int, context: ssl.SSLContext) -> str:
    def get() -> str:
        with urllib3.PoolManager(ssl_context=context, retries=False) as pool:
            return str(pool.request("GET", f"https://127.0.0.1:{port}/").json()["caller"])

    return await asyncio.to_thread(get)


async def with_http_client(port: int, context: ssl.SSLContext) -> str:
    """It sets no ALPN on a context that it is given."""

    def get() -> str:
        connection = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=60)
        with contextlib.closing(connection):
            connection.request("GET", "/")
            assert peer_id(connection) == BACKEND
            return connection.getresponse().read().decode()

    return str(FRONTEND) if f'"caller": "{FRONTEND}"' in await asyncio.to_thread(get) else ""


LIBRARIES: dict[str, Callable[[int, ssl.SSLContext], Awaitable[str]]] = {
    "asyncio": with_asyncio,
    "aiohttp": with_aiohttp,
    "httpx": with_async_httpx,
    "httpx with HTTP/2": with_httpx_and_http2,
    "urllib3": with_urllib3,
    "http.client": with_http_client,
}


class TestPermissive:
    async def test_every_library_gets_through_with_istios_alpn_and_none_without(
        self, mesh: Mesh, authority: FakeAuthority, ours: MemorySource
    ) -> None:
        backend = await backend_of(mesh, authority, Mode.PERMISSIVE)
        port = backend.ports["inbound_web"]
        for name, call in LIBRARIES.items():
            before = await backend.count("listener.inbound_web.no_filter_chain_match")
            with pytest.raises((OSError, CallFailed, httpx.HTTPError, urllib3.exceptions.HTTPError)):
                await call(port, client_context(ours, is_id(BACKEND)))
            assert await backend.count("listener.inbound_web.no_filter_chain_match") > before, name
            before = await backend.count(f"{SSL}.handshake")
            assert await call(port, client_context(ours, is_id(BACKEND), istio_alpn=True)) == str(FRONTEND), name
            assert await backend.count(f"{SSL}.handshake") == before + 1, name

    async def test_tcp_is_terminated_with_it_and_reaches_the_application(
        self, mesh: Mesh, authority: FakeAuthority, ours: MemorySource
    ) -> None:
        backend = await backend_of(mesh, authority, Mode.PERMISSIVE, Protocol.TCP)
        port = backend.ports["inbound_web"]
        with pytest.raises(CallFailed):  # the echo sends our own first message back
            await tcp_echo(port, tls=client_context(ours, is_id(BACKEND)))
        assert await backend.count(f"{SSL}.handshake") == 0
        for protocols in ((), ("h2",), ("postgresql",)):
            await tcp_echo(port, tls=client_context(ours, is_id(BACKEND), istio_alpn=True, alpn=protocols))
        assert await backend.count(f"{SSL}.handshake") == 3

    async def test_without_it_the_applications_own_tls_is_reached_through_the_sidecar(
        self, mesh: Mesh, authority: FakeAuthority, ours: MemorySource
    ) -> None:
        """The peer is the application then, not its sidecar: nobody has touched the bytes in between."""
        own = MemorySource.of(authority.svid(APPLICATION.path), authority.bundle())
        callers: list[SpiffeID] = []
        async with echo_server(server_context(own, any_id()), callers) as application:
            inbound = Inbound(
                HostPort("127.0.0.1", 0),
                HostPort("127.0.0.1", application),
                Protocol.TCP,
                Mode.PERMISSIVE,
                (FRONTEND,),
                "web",
            )
            context = holding(authority.svid(BACKEND.path), authority.bundle())
            backend = await mesh.workload(context, inbound=(inbound,), own_application=False)
            port = backend.ports["inbound_web"]
            await tcp_echo(port, tls=client_context(ours, is_id(APPLICATION)))
            assert callers == [FRONTEND]
            assert await backend.count(f"{SSL}.handshake") == 0
            with pytest.raises(CallFailed, match="is refused"):
                await tcp_echo(port, tls=client_context(ours, is_id(APPLICATION), istio_alpn=True))
            assert callers == [FRONTEND]


class TestStrict:
    async def test_the_sidecar_knows_us_and_we_know_the_sidecar(
        self, mesh: Mesh, authority: FakeAuthority, ours: MemorySource
    ) -> None:
        backend = await backend_of(mesh, authority, Mode.STRICT)
        port = backend.ports["inbound_web"]
        for istio_alpn in (False, True):
            context = client_context(ours, is_id(BACKEND), istio_alpn=istio_alpn)
            assert await with_aiohttp(port, context) == str(FRONTEND)
        with pytest.raises(PeerRefused) as caught:
            await asyncio.open_connection("127.0.0.1", port, ssl=client_context(ours, is_id(INTRUDER)))
        assert isinstance(caught.value.reason_error, NotAuthorized)
        ours.replace(holding(authority.svid(INTRUDER.path), authority.bundle()))
        before = await backend.count(f"{SSL}.fail_verify_san")
        with pytest.raises(CallFailed):
            await http_get(port, tls=client_context(ours, is_id(BACKEND)))
        await backend.counted(f"{SSL}.fail_verify_san", before)

    async def test_a_sidecar_with_our_domains_name_by_a_federated_ca_is_refused_by_us(
        self, mesh: Mesh, authority: FakeAuthority, foreign_authority: FakeAuthority
    ) -> None:
        """Its root is among those that OpenSSL is given: only our verdict stands in the way."""
        ours = MemorySource.of(authority.svid(FRONTEND.path), authority.bundle(), foreign_authority.bundle())
        forged = holding(foreign_authority.svid(uris=[str(BACKEND)]), authority.bundle())
        backend = await mesh.workload(forged, inbound=(letting_in(FRONTEND),))
        context = client_context(ours, is_id(BACKEND))
        with pytest.raises(PeerRefused) as caught:
            await asyncio.open_connection("127.0.0.1", backend.ports["inbound_web"], ssl=context)
        assert isinstance(caught.value.reason_error, VerificationError)
        assert caught.value.reason_error.fault is Fault.UNTRUSTED
        assert "no path to the bundle of cluster.local" in str(caught.value)
        backend.agent.replace(holding(authority.svid(BACKEND.path), authority.bundle()))
        async with asyncio.timeout(60):
            while True:
                with contextlib.suppress(CallFailed):
                    assert (await http_get(backend.ports["inbound_web"], tls=context)).caller == str(FRONTEND)
                    break


class TestASidecarAsOurClient:
    async def test_it_is_known_by_name_to_a_server_of_ours(self, mesh: Mesh, authority: FakeAuthority) -> None:
        own = MemorySource.of(authority.svid(BACKEND.path), authority.bundle())
        callers: list[SpiffeID] = []
        async with echo_server(server_context(own, is_id(FRONTEND)), callers) as port:
            frontend = await sidecar_towards(mesh, authority, port, authority.svid(FRONTEND.path))
            await tcp_echo(frontend)
            own.replace(holding(authority.svid(BACKEND.path), authority.bundle()))
            await tcp_echo(frontend)
        assert callers == [FRONTEND, FRONTEND]

    async def test_a_server_of_ours_refuses_it_by_name_and_by_issuer(
        self,
        mesh: Mesh,
        authority: FakeAuthority,
        foreign_authority: FakeAuthority,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        caplog.set_level(logging.DEBUG, "istio_auth.tls")
        own = MemorySource.of(authority.svid(BACKEND.path), authority.bundle(), foreign_authority.bundle())
        callers: list[SpiffeID] = []
        reasons: list[str] = []

        def only_the_frontend(peer: SpiffeID) -> None:
            reasons.append(str(peer))
            is_id(FRONTEND)(peer)

        async with echo_server(server_context(own, only_the_frontend), callers) as port:
            intruder = await sidecar_towards(mesh, authority, port, authority.svid(INTRUDER.path))
            forger = await sidecar_towards(mesh, authority, port, foreign_authority.svid(uris=[str(FRONTEND)]))
            for refused in (intruder, forger):
                with pytest.raises(CallFailed):
                    await tcp_echo(refused)
            assert callers == []
            assert reasons == [str(INTRUDER)]  # the forger proved no name that one could decide on
            assert f"{INTRUDER} is refused" in caplog.text
            assert "no path to the bundle of cluster.local" in caplog.text
            await tcp_echo(await sidecar_towards(mesh, authority, port, authority.svid(FRONTEND.path)))
            assert callers == [FRONTEND]


async def sidecar_towards(mesh: Mesh, authority: FakeAuthority, port: int, svid: object) -> int:
    """The port of a sidecar that passes TCP to a server of ours on this one."""
    upstream = going_to(port, BACKEND, protocol=Protocol.TCP)
    context = holding(svid, authority.bundle())  # type: ignore[arg-type]  # an SVID
    workload = await mesh.workload(context, upstreams=(upstream,))
    return workload.ports["outbound_backend"]


@contextlib.asynccontextmanager
async def echo_server(context: ssl.SSLContext, callers: list[SpiffeID]) -> AsyncIterator[int]:
    """A server of ours, which says who called."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        callers.append(peer_id(writer))
        with contextlib.suppress(OSError):
            while word := await reader.read(4096):
                writer.write(word)
        writer.close()

    listener = await asyncio.start_server(echo, "127.0.0.1", 0, ssl=context)
    try:
        yield listener.sockets[0].getsockname()[1]
    finally:
        listener.close()
