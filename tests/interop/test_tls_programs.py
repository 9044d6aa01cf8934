"""Our contexts and programs that know nothing of SPIFFE: openssl as client and as server, and curl."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import logging
import shutil
import ssl
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from istio_auth.authorize import any_id, is_id
from istio_auth.errors import Fault, NotAuthorized, VerificationError
from istio_auth.peer import PeerRefused
from istio_auth.pem import write_certificates
from istio_auth.sources.memory import MemorySource
from istio_auth.spiffe_id import SpiffeID
from istio_auth.svid import X509SVID
from istio_auth.tls import client_context, peer_id, server_context
from tests.fakes.authority import FakeAuthority
from tests.vectors.x509_svid import BUNDLES, FEDERATED, LOCAL, sound_intermediate

SERVER = SpiffeID.parse("spiffe://cluster.local/server")
THEIRS = SpiffeID.parse("spiffe://cluster.local/theirs")
VERSIONS = ["-tls1_2", "-tls1_3"]
HOST = "web.test"
PATIENCE = 60.0

openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


@dataclass(frozen=True)
class Identity:
    """An SVID as programs take it: in files."""

    chain: Path
    key: Path
    roots: Path

    @classmethod
    def of(cls, svid: X509SVID, folder: Path) -> Identity:
        folder.mkdir()
        files = cls(folder / "chain.pem", folder / "key.pem", folder / "roots.pem")
        files.chain.write_bytes(svid.chain_pem())
        files.key.write_bytes(svid.key_pem())
        files.roots.write_bytes(write_certificates((LOCAL.certificate, FEDERATED.certificate)))
        return files

    @property
    def words(self) -> tuple[object, ...]:
        """What openssl is told of it; both commands take the first certificate of a chain, and the rest apart."""
        return ("-cert", self.chain, "-cert_chain", self.chain, "-key", self.key, "-CAfile", self.roots)


def honest() -> X509SVID:
    """Of the local trust domain, below an intermediate."""
    return FakeAuthority(parent=sound_intermediate(), now=LOCAL.now).svid("/theirs", dns_names=(HOST,))


def forged() -> X509SVID:
    """The same name, by the CA of another trust domain that is trusted too."""
    return FEDERATED.svid(uris=[str(THEIRS)], dns_names=(HOST,))


@pytest.fixture
def theirs(tmp_path: Path) -> Identity:
    return Identity.of(honest(), tmp_path / "honest")


@pytest.fixture
def forger(tmp_path: Path) -> Identity:
    return Identity.of(forged(), tmp_path / "forged")


def ours() -> MemorySource:
    return MemorySource.of(LOCAL.svid("/server", dns_names=(HOST,)), *BUNDLES)


@contextlib.asynccontextmanager
async def running(*command: object) -> AsyncIterator[asyncio.subprocess.Process]:
    """A program, until the context is left."""
    process = await asyncio.create_subprocess_exec(
        *map(str, command),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


async def said(process: asyncio.subprocess.Process, word: str) -> str:
    """What a program has printed when it has printed this word, or its end."""
    assert process.stdout is not None
    found = b""
    async with asyncio.timeout(PATIENCE):
        while word.encode() not in found and (more := await process.stdout.read(4096)):
            found += more
    return found.decode(errors="replace")


def tell(process: asyncio.subprocess.Process, line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line.encode() + b"\n")


class Echo:
    """A server of ours in asyncio: tells each caller its name, then its own lines."""

    def __init__(self) -> None:
        self.judged: list[SpiffeID] = []
        self.context = server_context(ours(), self.judged.append)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(f"you are {peer_id(writer)}\n".encode())
        with contextlib.suppress(OSError):
            while line := await reader.readline():
                writer.write(b"echo " + line)
        writer.transport.abort()

    @contextlib.asynccontextmanager
    async def port(self) -> AsyncIterator[int]:
        server = await asyncio.start_server(self.serve, "127.0.0.1", 0, ssl=self.context)
        async with server:
            yield server.sockets[0].getsockname()[1]


def s_client(
    port: int, version: str, *more: object
) -> contextlib.AbstractAsyncContextManager[asyncio.subprocess.Process]:
    return running("openssl", "s_client", "-connect", f"127.0.0.1:{port}", version, *more)


@openssl
@pytest.mark.parametrize("version", VERSIONS)
class TestOpenSSLAsAClient:
    async def test_it_is_known_by_name_and_accepts_us(self, version: str, theirs: Identity) -> None:
        async with Echo().port() as port, s_client(port, version, *theirs.words, "-verify_return_error") as client:
            tell(client, "hello")
            heard = await said(client, "echo hello")
            assert f"you are {THEIRS}" in heard
            assert "Verify return code: 0 (ok)" in heard

    async def test_a_local_name_by_a_federated_ca_is_told_nothing(
        self, version: str, forger: Identity, theirs: Identity, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG, "istio_auth.tls")
        echo = Echo()
        async with echo.port() as port:
            async with s_client(port, version, *forger.words) as client:
                tell(client, "hello")
                assert "you are" not in await said(client, "echo")
            assert "no path to the bundle of cluster.local" in caplog.text
            assert echo.judged == []
            async with s_client(port, version, *theirs.words) as client:
                assert "you are" in await said(client, "you are")

    async def test_without_a_certificate_it_is_told_nothing(
        self, version: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG, "istio_auth.tls")
        async with Echo().port() as port, s_client(port, version) as client:
            assert "you are" not in await said(client, "you are")
        assert "presented no certificate" in caplog.text

    async def test_its_second_handshake_is_refused_and_changes_nobodys_name(
        self, version: str, theirs: Identity
    ) -> None:
        """`R` renegotiates in TLS 1.2; in 1.3, where there is no such thing, `K` renews the keys, which is harmless."""
        echo = Echo()
        async with echo.port() as port, s_client(port, version, *theirs.words) as client:
            tell(client, "hello")
            await said(client, "echo hello")
            if version == "-tls1_2":
                tell(client, "R")
                heard = await said(client, "no renegotiation")
                assert "RENEGOTIATING" in heard
                assert "no renegotiation" in heard
            else:
                tell(client, "K")
                await said(client, "KEYUPDATE")
                tell(client, "again")
                assert "echo again" in await said(client, "echo again")
        assert echo.judged == [THEIRS]


@contextlib.asynccontextmanager
async def s_server(version: str, *more: object) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    """A server of openssl, and its port."""
    async with running("openssl", "s_server", "-accept", "127.0.0.1:0", version, *more) as server:
        heard = await said(server, "ACCEPT 127.0.0.1:")
        while "\n" not in heard.partition("ACCEPT 127.0.0.1:")[2]:
            heard += await said(server, "\n")
        yield server, int(heard.partition("ACCEPT 127.0.0.1:")[2].split()[0])


@openssl
@pytest.mark.parametrize("version", VERSIONS)
class TestOpenSSLAsAServer:
    async def test_it_is_known_by_name_and_accepts_us(self, version: str, theirs: Identity) -> None:
        demanding = (*theirs.words, "-Verify", 3, "-verify_return_error", "-rev")
        async with s_server(version, *demanding) as (_, port):
            assert await self.ask(port, is_id(THEIRS)) == (THEIRS, b"olleh\n")
            with pytest.raises(PeerRefused) as caught:
                await self.ask(port, is_id(SERVER))
            assert isinstance(caught.value.reason_error, NotAuthorized)

    async def test_a_local_name_by_a_federated_ca_is_refused_by_us(
        self, version: str, forger: Identity, theirs: Identity
    ) -> None:
        async with s_server(version, *forger.words, "-rev") as (_, port):
            with pytest.raises(PeerRefused) as caught:
                await self.ask(port, is_id(THEIRS))
            assert isinstance(caught.value.reason_error, VerificationError)
            assert caught.value.reason_error.fault is Fault.UNTRUSTED
            assert "no path to the bundle of cluster.local" in str(caught.value)
        async with s_server(version, *theirs.words, "-rev") as (_, port):
            assert await self.ask(port, is_id(THEIRS)) == (THEIRS, b"olleh\n")

    async def ask(self, port: int, authorize: object) -> tuple[SpiffeID, bytes]:
        """Whom we met, and what it made of our word."""
        context = client_context(ours(), authorize)  # type: ignore[arg-type]  # an authorizer
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        writer.write(b"hello\n")
        async with asyncio.timeout(PATIENCE):
            answer = await reader.readline()
        found = peer_id(writer), answer
        writer.transport.abort()
        return found


@openssl
async def test_a_second_handshake_that_openssl_asks_for_as_a_server_is_refused(theirs: Identity) -> None:
    """`r` does so in TLS 1.2; openssl then gives the connection up."""
    judged: list[SpiffeID] = []
    async with s_server("-tls1_2", *theirs.words) as (server, port):
        context = client_context(ours(), judged.append)
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        writer.write(b"hello\n")
        assert "hello" in await said(server, "hello")
        tell(server, "r")
        with pytest.raises(ssl.SSLError, match="HANDSHAKE_FAILURE"):
            async with asyncio.timeout(PATIENCE):
                await reader.readline()
        assert "no renegotiation" in await said(server, "no renegotiation")
        writer.transport.abort()
    assert judged == [THEIRS]


class Handler(http.server.BaseHTTPRequestHandler):
    """Says who asks."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(str(peer_id(self)).encode())

    def log_message(self, *_args: object) -> None:
        """Nothing is written to the terminal."""


class QuietServer(http.server.ThreadingHTTPServer):
    """Keeps its errors to itself."""

    def handle_error(self, _request: object, _address: object) -> None:
        """What is refused is in the log."""


@contextlib.contextmanager
def serving(context: ssl.SSLContext) -> Iterator[int]:
    with QuietServer(("127.0.0.1", 0), Handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join(60)


async def fetch(port: int, *more: object) -> tuple[int, str]:
    """How curl ends, and what it got. It checks the host's name, as it always does."""
    where = ("--resolve", f"{HOST}:{port}:127.0.0.1", f"https://{HOST}:{port}/")
    command = ("curl", "--silent", "--show-error", "--noproxy", "*", "--max-time", PATIENCE, *more, *where)
    process = await asyncio.create_subprocess_exec(
        *map(str, command), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    out, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode()


@curl
async def test_curl_is_known_by_name_and_told_nothing_under_a_forged_one(
    theirs: Identity, forger: Identity, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "istio_auth.tls")
    with serving(server_context(ours(), any_id())) as port:
        for identity, said_of in (
            (forger, "no path to the bundle of cluster.local"),
            (None, "presented no certificate"),
        ):
            words: tuple[object, ...] = ("--cert", identity.chain, "--key", identity.key) if identity else ()
            code, answer = await fetch(port, "--cacert", theirs.roots, *words)
            assert code != 0
            assert "spiffe://" not in answer
            assert said_of in caplog.text
        words = ("--cacert", theirs.roots, "--cert", theirs.chain, "--key", theirs.key)
        for version in ("--tlsv1.2", "--tlsv1.3"):
            assert await fetch(port, *words, version, "--tls-max", version[-3:]) == (0, str(THEIRS))
