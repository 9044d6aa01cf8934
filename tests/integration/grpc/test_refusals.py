"""The wrong one is refused before it hears or says anything, and the reason is where one looks for it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import socket
import ssl
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import cast

import grpc
import pytest

from istio_auth.authorize import any_id, is_id
from istio_auth.errors import (
    ConfigurationError,
    Fault,
    IstioAuthError,
    NotAuthenticated,
    NotAuthorized,
    NotReady,
    VerificationError,
)
from istio_auth.grpc import GrpcChannel, blocking_grpc_channel, grpc_channel
from istio_auth.sources.memory import MemorySource
from istio_auth.spiffe_id import SpiffeID
from istio_auth.svid import X509SVID
from istio_auth.tls import server_context
from istio_auth.x509_source import X509Context
from tests.fakes.tcp import closed_port
from tests.fakes.waiting import until
from tests.integration.grpc.service import (
    AT_ONCE,
    CHAT,
    CLIENT,
    COUNT,
    ECHO,
    JOIN,
    KINDS,
    OTHER,
    SERVER,
    WAIT,
    Refusals,
    Talk,
    echo,
    given_up,
    holding,
    new_server,
    served,
)
from tests.vectors.x509_svid import BUNDLES, FEDERATED, LOCAL, STRANGER

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


def forged(spiffe_id: SpiffeID) -> X509SVID:
    """A name of ours, by the CA of another trust domain that is trusted too."""
    return FEDERATED.svid(uris=[str(spiffe_id)])


def hold(source: MemorySource, svid: X509SVID) -> None:
    source.replace(X509Context((svid,), BUNDLES))


async def failing(call: object) -> grpc.aio.AioRpcError:
    """The error that a call ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call  # type: ignore[misc]  # whatever can be waited for
    return caught.value


class EavesdroppingServer:
    """A TLS server that lets everybody in, and notes what it hears."""

    def __init__(self, source: MemorySource) -> None:
        self._context = server_context(source, any_id(), alpn=("h2",))
        self.heard = b""
        self.finished = 0

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._hear, "127.0.0.1", 0, ssl=self._context)
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        server.close()

    async def _hear(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, ssl.SSLError):
            while data := await reader.read(1000):
                self.heard += data
        writer.transport.abort()
        self.finished += 1


class TestServers:
    async def test_the_wrong_one_hears_no_byte_of_a_request(self, theirs: MemorySource) -> None:
        """It is of our trust domain, and valid in every respect but its name."""
        server = EavesdroppingServer(source := holding(OTHER))
        async with (
            server.listening() as address,
            grpc_channel(theirs, is_id(SERVER), address, options=AT_ONCE) as channel,
        ):
            error = await failing(echo(channel)(b"secret", timeout=60))
            assert error.code() == UNAVAILABLE
            assert f"{OTHER} is refused: welcome is {SERVER}" in str(error.details())
            assert server.heard == b""
            hold(source, LOCAL.svid("/server"))
            call = echo(channel)(b"secret", wait_for_ready=True)
            await until(lambda: server.heard)
            assert server.heard.startswith(b"PRI * HTTP/2.0")
            await given_up(call)
        await until(lambda: server.finished)

    @pytest.mark.parametrize(("istio_alpn", "selected"), [(True, "istio-h2"), (False, None)])
    async def test_a_permissive_sidecar_is_offered_istios_names_if_one_asks_for_it(
        self, theirs: MemorySource, istio_alpn: bool, selected: str | None
    ) -> None:
        found: list[str | None] = []

        async def note(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            found.append(writer.get_extra_info("ssl_object").selected_alpn_protocol())
            writer.transport.abort()

        context = server_context(holding(SERVER), any_id(), alpn=("istio-h2",))
        server = await asyncio.start_server(note, "127.0.0.1", 0, ssl=context)
        address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with grpc_channel(theirs, is_id(SERVER), address, istio_alpn=istio_alpn) as channel:
            await failing(echo(channel)(b""))
        server.close()
        assert set(found) == {selected}  # gRPC may have dialled more than once

    @pytest.mark.parametrize(
        ("wrong", "fault"),
        [(forged(SERVER), Fault.UNTRUSTED), (STRANGER.svid("/server"), Fault.UNTRUSTED)],
        ids=["by the CA of a federated trust domain", "by a stranger"],
    )
    async def test_our_name_by_another_ca_is_refused(
        self, ours: MemorySource, theirs: MemorySource, talk: Talk, wrong: X509SVID, fault: Fault
    ) -> None:
        async with (
            served(new_server("aio", talk), ours) as door,
            grpc_channel(theirs, is_id(SERVER), door.address, options=AT_ONCE) as channel,
        ):
            hold(ours, wrong)
            error = await failing(echo(channel)(b"", timeout=60))
            assert error.code() == UNAVAILABLE
            assert isinstance(error.__cause__, VerificationError)
            assert error.__cause__.fault is fault
            hold(ours, LOCAL.svid("/server"))
            assert await echo(channel)(b"hello", wait_for_ready=True) == b"hello"
            assert channel.last_error is None


class TestClients:
    @pytest.mark.parametrize("kind", KINDS)
    async def test_one_that_is_not_welcome_never_reaches_a_method(
        self, kind: str, theirs: MemorySource, talk: Talk, refusals: Refusals
    ) -> None:
        async with (
            served(new_server(kind, talk), authorize=is_id(CLIENT), on_refused=refusals) as door,
            grpc_channel(theirs, is_id(SERVER), door.address, options=AT_ONCE) as channel,
        ):
            hold(theirs, LOCAL.svid("/other"))
            assert (await failing(echo(channel)(b"", timeout=60))).code() == UNAVAILABLE
            await until(lambda: refusals.reasons)
            assert isinstance(refusals.reasons[0], NotAuthorized)
            assert (talk.callers, door.accepted, door.refused > 0) == ([], 0, True)
            hold(theirs, LOCAL.svid("/client"))
            assert await echo(channel)(b"hello", wait_for_ready=True) == b"hello"
            assert talk.callers == [CLIENT]

    async def test_our_name_by_the_ca_of_a_federated_trust_domain_is_refused(
        self, theirs: MemorySource, talk: Talk, refusals: Refusals
    ) -> None:
        async with (
            served(new_server("aio", talk), on_refused=refusals) as door,
            grpc_channel(theirs, is_id(SERVER), door.address, options=AT_ONCE) as channel,
        ):
            hold(theirs, forged(CLIENT))
            assert (await failing(echo(channel)(b"", timeout=60))).code() == UNAVAILABLE
            await until(lambda: refusals.reasons)
            assert isinstance(refusals.reasons[0], VerificationError)
            hold(theirs, FEDERATED.svid("/client"))
            assert await echo(channel)(b"hello", wait_for_ready=True) == b"hello"
            assert [str(caller) for caller in talk.callers] == ["spiffe://partner.test/client"]

    async def test_the_client_hears_that_the_server_refused_it(self, theirs: MemorySource, talk: Talk) -> None:
        """In TLS 1.3 its own handshake was over by then."""
        hold(theirs, LOCAL.svid("/other"))
        async with (
            served(new_server("aio", talk), authorize=is_id(CLIENT)) as door,
            grpc_channel(theirs, is_id(SERVER), door.address) as channel,
        ):
            error = await failing(echo(channel)(b"", timeout=60))
            assert isinstance(error.__cause__, NotAuthenticated | NotReady)
            assert f"{door.address} was not reached: " in str(error.details())


class TestReasons:
    @pytest.fixture
    async def refused(self, theirs: MemorySource, talk: Talk) -> AsyncIterator[GrpcChannel]:
        """A channel to a server that is the wrong one."""
        async with (
            served(new_server("aio", talk), holding(OTHER)) as door,
            grpc_channel(theirs, is_id(SERVER), door.address, options=AT_ONCE) as channel,
        ):
            yield channel

    async def test_each_kind_of_call_tells_them(self, refused: GrpcChannel) -> None:
        reason = f"{OTHER} is refused: welcome is {SERVER}"
        unary, stream = refused.unary_unary(ECHO)(b""), refused.unary_stream(COUNT)(b"1")
        joining, chat = refused.stream_unary(JOIN)(iter([b""])), refused.stream_stream(CHAT)(iter([b""]))
        for awaited in (unary, joining, anext(aiter(stream)), chat.read()):
            error = await failing(awaited)
            assert error.code() == UNAVAILABLE
            assert reason in str(error.details())
            assert reason in str(error)
            assert isinstance(error.__cause__, NotAuthorized)
        for call in (unary, stream, joining, chat):
            assert await call.code() == UNAVAILABLE
            assert reason in await call.details()
        assert isinstance(refused.last_error, NotAuthorized)

    async def test_whoever_waits_for_the_connection_or_writes_hears_them(self, refused: GrpcChannel) -> None:
        reason = f"{OTHER} is refused"
        for call in (
            refused.unary_stream(COUNT)(b"1"),
            refused.stream_stream(CHAT)(None),
            refused.unary_unary(ECHO)(b""),
        ):
            assert reason in str((await failing(call.wait_for_connection())).details())
        writing = refused.stream_unary(JOIN)(None)
        assert reason in str((await failing(writing.write(b""))).details())

    async def test_a_callback_is_given_the_call_that_tells_them(self, refused: GrpcChannel) -> None:
        told: list[grpc.aio.Call] = []
        call = refused.unary_unary(ECHO)(b"")
        call.add_done_callback(told.append)
        await failing(call)
        await until(lambda: told)
        assert f"{OTHER} is refused" in await told[0].details()

    async def test_a_call_that_waits_hears_them_at_its_deadline(self, refused: GrpcChannel) -> None:
        await failing(echo(refused)(b""))  # there is a reason, however long the first connection takes
        error = await failing(echo(refused)(b"", wait_for_ready=True, timeout=0.5))
        assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        assert f"{OTHER} is refused" in str(error.details())

    async def test_the_log_has_each_one_once_aloud(
        self, refused: GrpcChannel, caplog: pytest.LogCaptureFixture
    ) -> None:
        def levels() -> list[int]:
            return [record.levelno for record in caplog.records if record.name == "istio_auth.portal"]

        with caplog.at_level(logging.DEBUG, "istio_auth.portal"):
            call = echo(refused)(b"", wait_for_ready=True)
            await until(lambda: len(levels()) > 3)
            await given_up(call)
            assert levels()[0] == logging.WARNING
            assert set(levels()[1:]) == {logging.DEBUG}

    @pytest.mark.parametrize("kind", KINDS)
    async def test_a_blocking_channel_tells_them_too(self, kind: str, theirs: MemorySource, talk: Talk) -> None:
        def ask(address: str) -> list[BaseException | None]:
            with blocking_grpc_channel(theirs, is_id(SERVER), address) as channel:
                errors: list[BaseException | None] = []
                future = channel.stream_unary(JOIN).future(iter([b""]))
                told = queue.SimpleQueue[object]()
                future.add_done_callback(told.put)
                chat = channel.stream_stream(CHAT)(iter([b""]))
                for failing_call in (
                    lambda: channel.unary_unary(ECHO)(b""),
                    lambda: channel.unary_unary(ECHO).with_call(b""),
                    lambda: channel.stream_unary(JOIN)(iter([b""])),
                    lambda: list(channel.unary_stream(COUNT)(b"1")),
                    lambda: list(chat),
                    lambda: future.result(60),
                ):
                    with pytest.raises(grpc.RpcError) as caught:
                        failing_call()
                    errors.append(caught.value)
                errors.append(future.exception())
                assert f"{OTHER} is refused" in chat.details()
                assert told.get(timeout=60) is future  # a thread of gRPC tells it, after whoever waits
                assert isinstance(channel.last_error, NotAuthorized)
                return errors

        async with served(new_server(kind, talk), holding(OTHER)) as door:
            errors = await asyncio.to_thread(ask, door.address)
        assert len(errors) == 7
        for error in errors:
            assert isinstance(error, grpc.RpcError)
            assert isinstance(error, cast("type", grpc.Call))
            assert error.code() == UNAVAILABLE
            assert f"{OTHER} is refused: welcome is {SERVER}" in str(error.details())
            assert f"{OTHER} is refused: welcome is {SERVER}" in str(error)
        assert all(error and isinstance(error.__cause__, NotAuthorized) for error in errors[:-1])

    async def test_what_the_server_itself_says_is_left_alone(self, theirs: MemorySource) -> None:
        async def busy(_request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
            await context.abort(UNAVAILABLE, "come again later")

        server = grpc.aio.server()
        methods = {"Echo": grpc.unary_unary_rpc_method_handler(busy)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Talk", methods),))
        async with (
            served(server) as door,
            grpc_channel(theirs, is_id(SERVER), door.address) as channel,
        ):
            error = await failing(echo(channel)(b""))
            assert (error.code(), error.details(), error.__cause__) == (UNAVAILABLE, "come again later", None)

    async def test_nobody_there_is_told_with_the_address(self, theirs: MemorySource, talk: Talk) -> None:
        port = closed_port()
        async with grpc_channel(theirs, is_id(SERVER), f"localhost:{port}", options=AT_ONCE) as channel:
            error = await failing(echo(channel)(b"", timeout=60))
            assert f"localhost:{port} can not be reached: " in str(error.details())
            async with served(new_server("aio", talk), address=f"127.0.0.1:{port}"):
                assert await echo(channel)(b"hello", wait_for_ready=True) == b"hello"

    async def test_a_name_that_is_not_known_is_told(self, theirs: MemorySource) -> None:
        async with grpc_channel(theirs, is_id(SERVER), "no-such-host.invalid:443") as channel:
            assert "no-such-host.invalid:443 can not be reached" in str((await failing(echo(channel)(b""))).details())

    async def test_an_svid_that_has_not_arrived_is_told_and_waited_for(self, talk: Talk) -> None:
        source = MemorySource()
        async with (
            served(new_server("aio", talk)) as door,
            grpc_channel(source, is_id(SERVER), door.address, options=AT_ONCE) as channel,
        ):
            assert isinstance((await failing(echo(channel)(b""))).__cause__, NotReady)
            call = echo(channel)(b"hello", wait_for_ready=True)
            source.replace(holding(CLIENT).x509_context())
            assert await call == b"hello"

    async def test_a_server_that_does_not_answer_ends_the_patience(self, theirs: MemorySource) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            address = f"127.0.0.1:{silent.getsockname()[1]}"
            patience = timedelta(seconds=0.1)
            async with grpc_channel(theirs, is_id(SERVER), address, patience=patience) as channel:
                error = await failing(channel.unary_unary(WAIT)(b""))
                assert f"{address} did not answer within 0.1 s" in str(error.details())


@pytest.mark.parametrize("address", ["", "server.test", ":443", "server.test:0", "http://server.test:443", "::1:443"])
async def test_an_address_that_is_none_is_told_at_once(address: str, theirs: MemorySource) -> None:
    with pytest.raises(ConfigurationError):
        async with grpc_channel(theirs, is_id(SERVER), address):
            pass
    with pytest.raises(IstioAuthError), blocking_grpc_channel(theirs, is_id(SERVER), address):
        pass
