"""gRPC's own TLS at one end, with what an SVID is made of, and ours at the other."""

from __future__ import annotations

import grpc
import pytest

from istio_auth.authorize import is_id
from istio_auth.errors import VerificationError
from istio_auth.grpc import grpc_channel
from istio_auth.pem import write_certificates
from istio_auth.sources.memory import MemorySource
from istio_auth.svid import X509SVID
from tests.fakes.waiting import until
from tests.integration.grpc.service import (
    AT_ONCE,
    CLIENT,
    KINDS,
    OTHER,
    SERVER,
    Refusals,
    Talk,
    echo,
    new_server,
    served,
)
from tests.vectors.x509_svid import BUNDLES, LOCAL, STRANGER

NAME = "server.test"


def credentials(svid: X509SVID) -> grpc.ChannelCredentials:
    """An SVID and the roots of now, as gRPC's own TLS takes them: once, for ever."""
    return grpc.ssl_channel_credentials(LOCAL.bundle().to_pem(), svid.key_pem(), write_certificates(svid.chain))


def plain(address: str, svid: X509SVID, *, name: str = NAME) -> grpc.aio.Channel:
    """GRPC's own channel, which knows servers by DNS name alone."""
    return grpc.aio.secure_channel(address, credentials(svid), options=[("grpc.ssl_target_name_override", name)])


@pytest.mark.parametrize("kind", KINDS)
async def test_grpcs_own_channel_is_served_if_the_servers_svid_has_a_dns_name(kind: str, talk: Talk) -> None:
    source = MemorySource.of(LOCAL.svid("/server", dns_names=[NAME]), *BUNDLES)
    async with served(new_server(kind, talk), source) as door, plain(door.address, LOCAL.svid("/client")) as channel:
        assert await echo(channel)(b"hello", timeout=60) == b"hello"
    assert talk.callers == [CLIENT]


@pytest.mark.parametrize("name", [NAME, str(SERVER)])
async def test_without_a_dns_name_it_refuses_our_server_itself(name: str, talk: Talk, refusals: Refusals) -> None:
    """It compares no URI names, so a SPIFFE ID as the name that it expects is of no use."""
    async with (
        served(new_server("aio", talk), on_refused=refusals) as door,
        plain(door.address, LOCAL.svid("/client"), name=name) as channel,
    ):
        with pytest.raises(grpc.aio.AioRpcError, match="Hostname Verification Check failed"):
            await echo(channel)(b"", timeout=60)
    assert talk.callers == []


async def test_a_stranger_with_grpcs_own_channel_is_refused_by_the_door(talk: Talk, refusals: Refusals) -> None:
    source = MemorySource.of(LOCAL.svid("/server", dns_names=[NAME]), *BUNDLES)
    async with served(new_server("aio", talk), source, authorize=is_id(CLIENT), on_refused=refusals) as door:
        for wrong in (STRANGER.svid("/client"), LOCAL.svid("/other")):
            async with plain(door.address, wrong) as channel:
                with pytest.raises(grpc.aio.AioRpcError):
                    await echo(channel)(b"", timeout=60)
        async with plain(door.address, LOCAL.svid("/client")) as channel:
            assert await echo(channel)(b"hello", timeout=60) == b"hello"
    assert isinstance(refusals.reasons[0], VerificationError)
    assert any(f"{OTHER} is refused: welcome is {CLIENT}" in str(reason) for reason in refusals.reasons)


async def test_our_channel_knows_a_server_with_grpcs_own_tls(theirs: MemorySource) -> None:
    async def hello(_request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        return b",".join(context.auth_context()["peer_spiffe_id"])

    server = grpc.aio.server()
    methods = {"Echo": grpc.unary_unary_rpc_method_handler(hello)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Talk", methods),))
    svid = LOCAL.svid("/server")
    pair = (svid.key_pem(), write_certificates(svid.chain))
    roots = LOCAL.bundle().to_pem()
    port = server.add_secure_port(
        "127.0.0.1:0", grpc.ssl_server_credentials([pair], root_certificates=roots, require_client_auth=True)
    )
    await server.start()
    try:
        async with grpc_channel(theirs, is_id(OTHER), f"127.0.0.1:{port}", options=AT_ONCE) as channel:
            with pytest.raises(grpc.aio.AioRpcError, match=f"{SERVER} is refused: welcome is {OTHER}"):
                await echo(channel)(b"", timeout=60)
        async with grpc_channel(theirs, is_id(SERVER), f"127.0.0.1:{port}") as channel:
            assert await echo(channel)(b"", timeout=60) == str(CLIENT).encode()
            await until(lambda: channel.last_error is None)
    finally:
        await server.stop(None)
