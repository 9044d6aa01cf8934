"""What a real Envoy lets in, with certificates that come by SDS; each refusal by its own counter, then mended."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from deploy.demo.client import CallFailed, http_get, tcp_echo, tls_client
from istio_auth.envoy.spec import Mode, Protocol
from tests.fakes.authority import FakeAuthority
from tests.interop.mesh import BACKEND, FRONTEND, INTRUDER, Mesh, Workload, holding, letting_in, running_mesh

SSL = "listener.inbound_web.ssl"


@pytest.fixture
async def mesh() -> AsyncIterator[Mesh]:
    async with running_mesh() as mesh:
        yield mesh


@pytest.fixture
async def backend(mesh: Mesh, authority: FakeAuthority) -> Workload:
    """A backend that lets in the frontend, by mutual TLS only."""
    return await mesh.workload(
        holding(authority.svid(BACKEND.path), authority.bundle()), inbound=(letting_in(FRONTEND),)
    )


async def refused(workload: Workload, counter: str, call: object) -> None:
    before = await workload.count(counter)
    with pytest.raises(CallFailed):
        await call  # type: ignore[misc]  # a coroutine
    await workload.counted(counter, before)


class TestStrict:
    async def test_an_allowed_caller_gets_through_and_the_application_sees_its_name(
        self, mesh: Mesh, backend: Workload, authority: FakeAuthority
    ) -> None:
        svid = authority.svid(FRONTEND.path, dns_names=("frontend.demo",))
        answer = await http_get(backend.ports["inbound_web"], tls=mesh.client(svid))
        assert answer.caller == str(FRONTEND)
        proof = answer.headers["x-forwarded-client-cert"]
        fields = dict(part.split("=", 1) for part in proof.split(";"))
        assert fields["By"] == str(BACKEND)
        assert fields["URI"] == str(FRONTEND)
        assert fields["DNS"] == "frontend.demo"
        assert len(fields["Hash"]) == 64
        assert fields["Subject"] == '""'

    @pytest.mark.parametrize("spelling", ["x-forwarded-client-cert", "X_Forwarded-Client_Cert"])
    async def test_a_forged_proof_is_replaced(
        self, mesh: Mesh, backend: Workload, authority: FakeAuthority, spelling: str
    ) -> None:
        forged = {spelling: "By=spiffe://cluster.local/x;URI=spiffe://cluster.local/ns/demo/sa/admin"}
        tls = mesh.client(authority.svid(FRONTEND.path))
        answer = await http_get(backend.ports["inbound_web"], tls=tls, headers=forged)
        assert answer.caller == str(FRONTEND)
        assert "admin" not in str(answer.headers)

    async def test_plaintext_is_refused(self, mesh: Mesh, backend: Workload, authority: FakeAuthority) -> None:
        port = backend.ports["inbound_web"]
        await refused(backend, "listener.inbound_web.no_filter_chain_match", http_get(port))
        await http_get(port, tls=mesh.client(authority.svid(FRONTEND.path)))

    async def test_a_caller_without_certificate_is_refused(
        self, mesh: Mesh, backend: Workload, authority: FakeAuthority
    ) -> None:
        port = backend.ports["inbound_web"]
        await refused(backend, f"{SSL}.fail_verify_no_cert", http_get(port, tls=tls_client()))
        await http_get(port, tls=mesh.client(authority.svid(FRONTEND.path)))

    @pytest.mark.parametrize(
        "path", [INTRUDER.path, FRONTEND.path + "2", FRONTEND.path[:-1], "/ns/demo/sa/Frontend", "/ns/demo"]
    )
    async def test_a_caller_that_is_not_named_is_refused(
        self, mesh: Mesh, backend: Workload, authority: FakeAuthority, path: str
    ) -> None:
        port = backend.ports["inbound_web"]
        await refused(backend, f"{SSL}.fail_verify_san", http_get(port, tls=mesh.client(authority.svid(path))))
        await http_get(port, tls=mesh.client(authority.svid(FRONTEND.path)))

    async def test_the_right_name_from_a_foreign_issuer_is_refused(
        self, mesh: Mesh, backend: Workload, authority: FakeAuthority
    ) -> None:
        port, foreign = backend.ports["inbound_web"], FakeAuthority(str(authority.trust_domain))
        await refused(backend, f"{SSL}.fail_verify_error", http_get(port, tls=mesh.client(foreign.svid(FRONTEND.path))))
        await http_get(port, tls=mesh.client(authority.svid(FRONTEND.path)))

    async def test_an_expired_certificate_is_refused(
        self, mesh: Mesh, backend: Workload, authority: FakeAuthority
    ) -> None:
        port, ended = backend.ports["inbound_web"], authority.now - timedelta(minutes=1)
        expired = mesh.client(authority.svid(FRONTEND.path, not_after=ended))
        await refused(backend, f"{SSL}.fail_verify_error", http_get(port, tls=expired))
        await http_get(port, tls=mesh.client(authority.svid(FRONTEND.path)))

    async def test_a_name_that_only_looks_like_the_allowed_one_in_dns_is_refused(
        self, mesh: Mesh, backend: Workload, authority: FakeAuthority
    ) -> None:
        disguised = authority.svid(INTRUDER.path, dns_names=("frontend",))
        await refused(
            backend, f"{SSL}.fail_verify_san", http_get(backend.ports["inbound_web"], tls=mesh.client(disguised))
        )

    async def test_who_allows_nobody_lets_nobody_in(self, mesh: Mesh, authority: FakeAuthority) -> None:
        context = holding(authority.svid(BACKEND.path), authority.bundle())
        closed = await mesh.workload(context, inbound=(letting_in(),))
        tls = mesh.client(authority.svid(FRONTEND.path))
        await refused(closed, f"{SSL}.fail_verify_san", http_get(closed.ports["inbound_web"], tls=tls))
        opened = await mesh.workload(context, inbound=(letting_in(FRONTEND),))
        await http_get(opened.ports["inbound_web"], tls=tls)

    async def test_a_trust_domain_stands_for_all_of_its_workloads(self, mesh: Mesh, authority: FakeAuthority) -> None:
        context = holding(authority.svid(BACKEND.path), authority.bundle())
        backend = await mesh.workload(context, inbound=(letting_in(authority.trust_domain.id),))
        port = backend.ports["inbound_web"]
        for member in (FRONTEND, INTRUDER):
            answer = await http_get(port, tls=mesh.client(authority.svid(member.path)))
            assert answer.caller == str(member)
        neighbour = authority.svid(uris=["spiffe://cluster.local.evil/ns/demo/sa/frontend"])
        await refused(backend, f"{SSL}.fail_verify_san", http_get(port, tls=mesh.client(neighbour)))


class TestPermissive:
    async def test_http_takes_both_and_believes_only_the_handshake(self, mesh: Mesh, authority: FakeAuthority) -> None:
        context = holding(authority.svid(BACKEND.path), authority.bundle())
        backend = await mesh.workload(context, inbound=(letting_in(FRONTEND, mode=Mode.PERMISSIVE),))
        port = backend.ports["inbound_web"]
        forged = {"x-forwarded-client-cert": f"URI={FRONTEND}"}
        assert (await http_get(port, headers=forged)).caller == ""
        assert (await http_get(port, tls=mesh.client(authority.svid(FRONTEND.path)))).caller == str(FRONTEND)
        intruder = mesh.client(authority.svid(INTRUDER.path))
        await refused(backend, f"{SSL}.fail_verify_san", http_get(port, tls=intruder))

    async def test_http_refuses_tls_that_is_not_of_the_mesh(self, mesh: Mesh, authority: FakeAuthority) -> None:
        context = holding(authority.svid(BACKEND.path), authority.bundle())
        backend = await mesh.workload(context, inbound=(letting_in(FRONTEND, mode=Mode.PERMISSIVE),))
        port, tls = backend.ports["inbound_web"], mesh.client(authority.svid(FRONTEND.path))
        tls.set_alpn_protocols(["http/1.1"])
        await refused(backend, "listener.inbound_web.no_filter_chain_match", http_get(port, tls=tls))
        tls.set_alpn_protocols(["istio-http/1.1", "istio", "http/1.1"])
        await http_get(port, tls=tls)

    async def test_tcp_takes_both(self, mesh: Mesh, authority: FakeAuthority) -> None:
        context = holding(authority.svid(BACKEND.path), authority.bundle())
        listener = letting_in(FRONTEND, mode=Mode.PERMISSIVE, protocol=Protocol.TCP)
        backend = await mesh.workload(context, inbound=(listener,))
        port = backend.ports["inbound_web"]
        await tcp_echo(port)
        await tcp_echo(port, tls=mesh.client(authority.svid(FRONTEND.path)))
        intruder = mesh.client(authority.svid(INTRUDER.path))
        await refused(backend, f"{SSL}.fail_verify_san", tcp_echo(port, tls=intruder))

    async def test_tcp_passes_the_applications_own_tls_untouched(self, mesh: Mesh, authority: FakeAuthority) -> None:
        context = holding(authority.svid(BACKEND.path), authority.bundle())
        listener = letting_in(mode=Mode.PERMISSIVE, protocol=Protocol.TCP)
        backend = await mesh.workload(context, inbound=(listener,))
        tls = tls_client()
        tls.set_alpn_protocols(["postgresql"])
        # The echo sends our own first message back: whoever terminated TLS would have answered with a handshake.
        with pytest.raises(CallFailed):
            await tcp_echo(backend.ports["inbound_web"], tls=tls)
        assert await backend.count("tcp.inbound_web.downstream_cx_total") == 1
        assert await backend.count(f"{SSL}.handshake") == 0


class TestDisable:
    @pytest.mark.parametrize("protocol", [Protocol.HTTP, Protocol.TCP])
    async def test_plaintext_passes_and_tls_is_not_terminated(
        self, mesh: Mesh, authority: FakeAuthority, protocol: Protocol
    ) -> None:
        context = holding(authority.svid(BACKEND.path), authority.bundle())
        backend = await mesh.workload(context, inbound=(letting_in(mode=Mode.DISABLE, protocol=protocol),))
        call = http_get if protocol.is_http else tcp_echo
        await call(backend.ports["inbound_web"])
        with pytest.raises(CallFailed):
            await call(backend.ports["inbound_web"], tls=mesh.client(authority.svid(FRONTEND.path)))
        assert await backend.count(f"{SSL}.handshake") == 0


class TestTCP:
    async def test_a_protocol_that_is_not_http_is_guarded_the_same_way(
        self, mesh: Mesh, authority: FakeAuthority
    ) -> None:
        context = holding(authority.svid(BACKEND.path), authority.bundle())
        backend = await mesh.workload(context, inbound=(letting_in(FRONTEND, protocol=Protocol.TCP),))
        port, allowed = backend.ports["inbound_web"], mesh.client(authority.svid(FRONTEND.path))
        await tcp_echo(port, tls=allowed)
        await refused(backend, "listener.inbound_web.no_filter_chain_match", tcp_echo(port))
        await refused(backend, f"{SSL}.fail_verify_no_cert", tcp_echo(port, tls=tls_client()))
        intruder = mesh.client(authority.svid(INTRUDER.path))
        await refused(backend, f"{SSL}.fail_verify_san", tcp_echo(port, tls=intruder))
        await tcp_echo(port, tls=allowed)
