"""Peers that stall, break off, or say one byte at a time: nothing passes, and the application's own timeouts work."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa

from istio_auth.authorize import any_id
from istio_auth.errors import Fault, NotAuthenticated, VerificationError
from istio_auth.peer import PeerRefused
from istio_auth.sources.memory import MemorySource
from istio_auth.tls import client_context, peer_chain, peer_id, server_context
from istio_auth.x509_source import X509Context
from tests.fakes.tcp import pair
from tests.fakes.tls import NAME, begin, stranger, talk
from tests.fakes.waiting import until_async
from tests.vectors.x509_svid import BUNDLES, KEY, LOCAL, UNKNOWN

OURS = MemorySource.of(LOCAL.svid("/ours"), *BUNDLES)
GOOD = LOCAL.chain(key=KEY)
SIDES = ["client", "server"]
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]
SOON = 0.2  # seconds that an application waits for a handshake
LATE = 60.0


def our_context(side: str) -> ssl.SSLContext:
    return client_context(OURS, any_id()) if side == "client" else server_context(OURS, any_id())


def their_context(side: str) -> ssl.SSLContext:
    """What the other end has if ours is on this side."""
    return stranger(server_side=side == "client", chain=GOOD, key=KEY)


@contextlib.contextmanager
def dribbling(source: socket.socket, sink: socket.socket, *, pause: float) -> Iterator[None]:
    """Pass on what comes, one byte after the other, with a pause after each."""
    done = threading.Event()

    def pass_on() -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(4096):
                for byte in data:
                    sink.sendall(bytes([byte]))
                    if done.wait(pause):
                        return

    thread = threading.Thread(target=pass_on)
    thread.start()
    try:
        yield
    finally:
        done.set()
        with contextlib.suppress(OSError):
            source.shutdown(socket.SHUT_RDWR)
        thread.join()


class TestBlocking:
    @pytest.mark.parametrize("side", SIDES)
    def test_a_peer_that_says_nothing_runs_into_the_sockets_timeout(self, side: str) -> None:
        with pair(timeout=SOON) as (ours, _), pytest.raises(TimeoutError):
            our_context(side).wrap_socket(ours, server_side=side == "server")

    @pytest.mark.parametrize("side", SIDES)
    def test_a_peer_that_says_one_byte_at_a_time_gets_no_more_time_than_that(self, side: str) -> None:
        """The timeout is one for the whole handshake, and does not begin anew with each byte."""
        with pair() as (slow_in, slow_out), pair() as (ours, middle), ThreadPoolExecutor(1) as pool:
            ours.settimeout(SOON)
            with dribbling(slow_out, middle, pause=SOON / 4):
                pool.submit(self.handshake, slow_in, side)
                began = time.monotonic()
                with pytest.raises(TimeoutError):
                    our_context(side).wrap_socket(ours, server_side=side == "server")
                assert time.monotonic() - began < 20, "with each byte anew it would be half a minute"

    @pytest.mark.parametrize("side", SIDES)
    def test_a_peer_that_only_is_slow_gets_in(self, side: str) -> None:
        with (
            pair() as (slow_in, slow_out),
            pair() as (ours, middle),
            ThreadPoolExecutor(1) as pool,
            dribbling(slow_out, middle, pause=0),
            dribbling(middle, slow_out, pause=0),
        ):
            theirs = pool.submit(self.handshake, slow_in, side)
            with our_context(side).wrap_socket(ours, server_side=side == "server") as tls:
                tls.sendall(b"word")
                assert theirs.result(LATE) == b"word"
                assert peer_id(tls).path == "/ns/default/sa/web"

    @staticmethod
    def handshake(plain: socket.socket, side: str) -> bytes:
        with (
            contextlib.suppress(OSError, ValueError),
            their_context(side).wrap_socket(plain, server_side=side == "client") as tls,
        ):
            return tls.recv(100)
        return b""

    @pytest.mark.parametrize("side", SIDES)
    @pytest.mark.parametrize("abruptly", [False, True], ids=["closed", "reset"])
    def test_a_peer_that_hangs_up_is_no_peer(self, side: str, *, abruptly: bool) -> None:
        with pair() as (plain, other):
            ours = our_context(side).wrap_socket(
                plain, server_side=side == "server", do_handshake_on_connect=False, suppress_ragged_eofs=True
            )
            if side == "server":
                other.sendall(hello())
                other.settimeout(LATE)
            if abruptly:
                other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            other.close()
            for call in (ours.do_handshake, lambda: ours.recv(5), lambda: ours.sendall(b"secret")):
                with pytest.raises(OSError):  # noqa: PT011  # an end of file, a reset or a broken pipe
                    call()
            with pytest.raises(NotAuthenticated):
                peer_id(ours)
            ours.close()


class TestAsyncio:
    @contextlib.asynccontextmanager
    async def greeting(self, *, ssl_handshake_timeout: float = LATE) -> AsyncIterator[tuple[str, int]]:
        """A server of ours that greets whom it is handed."""

        async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(str(peer_id(writer)).encode())
            with contextlib.suppress(OSError):
                await reader.read()
            writer.transport.abort()

        server = await asyncio.start_server(
            greet, "127.0.0.1", 0, ssl=server_context(OURS, any_id()), ssl_handshake_timeout=ssl_handshake_timeout
        )
        async with server:
            yield server.sockets[0].getsockname()

    async def is_greeted(self, address: tuple[str, int]) -> bool:
        """Whether it is; on a busy machine its own handshake may take longer than it has."""
        try:
            reader, writer = await asyncio.open_connection(*address, ssl=our_context("client"))
        except ConnectionError:
            return False
        try:
            return await reader.read(100) == b"spiffe://cluster.local/ours"
        except ConnectionError:
            return False
        finally:
            writer.transport.abort()

    @pytest.mark.parametrize("said", [b"", "half a message", "one byte at a time"])
    async def test_a_client_that_stalls_is_let_go_and_keeps_nobody_waiting(self, said: str | bytes) -> None:
        async with self.greeting(ssl_handshake_timeout=SOON) as address:
            reader, writer = await asyncio.open_connection(*address)
            stop = asyncio.Event()

            async def dribble() -> None:
                for byte in itertools.cycle(hello()):
                    writer.write(bytes([byte]))
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(SOON / 8):
                            await stop.wait()
                            return

            if said == "half a message":
                writer.write(hello()[:100])
            task = asyncio.create_task(dribble()) if said == "one byte at a time" else None
            await until_async(lambda: self.is_greeted(address))  # meanwhile
            with contextlib.suppress(ConnectionError):
                async with asyncio.timeout(LATE):
                    assert await reader.read() == b""
            stop.set()
            if task is not None:
                await task
            writer.transport.abort()
            await until_async(lambda: self.is_greeted(address))

    @pytest.mark.parametrize("limit", ["ssl_handshake_timeout", "asyncio.timeout"])
    async def test_a_server_that_stalls_runs_into_the_applications_timeout(self, limit: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            host, port = silent.getsockname()
            with pytest.raises((TimeoutError, ConnectionAbortedError)):
                async with asyncio.timeout(SOON if limit == "asyncio.timeout" else LATE):
                    await asyncio.open_connection(
                        host,
                        port,
                        ssl=our_context("client"),
                        ssl_handshake_timeout=SOON if limit == "ssl_handshake_timeout" else LATE,
                    )

    async def test_a_client_that_hangs_up_in_the_middle_is_never_handed_out(self) -> None:
        async with self.greeting() as address:
            for length in (0, 1, 100, len(hello())):
                _, writer = await asyncio.open_connection(*address)
                writer.write(hello()[:length])
                writer.close()
                await writer.wait_closed()
            assert await self.is_greeted(address)


class TestInMemory:
    @pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
    @pytest.mark.parametrize("side", SIDES)
    def test_wherever_a_peer_breaks_off_nothing_passes(self, side: str, version: ssl.TLSVersion) -> None:
        """Cut at every so many bytes; with all of them there is a peer."""
        whole = self.run(side, version, None)
        assert whole.count(True) == 1
        total = len(whole) - 1
        cuts = [*range(0, total - 8, 61), total - 8]  # signatures differ by a few bytes from run to run
        for cut in cuts:
            assert True not in self.run(side, version, cut), cut

    def run(self, side: str, version: ssl.TLSVersion, cut: int | None) -> list[bool]:
        """Feed ours so many bytes of a stranger's handshake, one by one: whether there was a peer after each."""
        theirs_context = their_context(side)
        theirs_context.minimum_version = theirs_context.maximum_version = version
        to_ours, from_ours, to_theirs = ssl.MemoryBIO(), ssl.MemoryBIO(), ssl.MemoryBIO()
        spoken = ssl.MemoryBIO()
        ours = our_context(side).wrap_bio(
            to_ours, from_ours, server_side=side == "server", server_hostname=NAME if side == "client" else None
        )
        theirs = theirs_context.wrap_bio(
            to_theirs, spoken, server_side=side == "client", server_hostname=NAME if side == "server" else None
        )
        states = [False]
        for _ in range(6):
            for end in (theirs, ours):
                with contextlib.suppress(ssl.SSLWantReadError):
                    end.do_handshake()
                to_theirs.write(from_ours.read())
            for byte in spoken.read():
                if len(states) - 1 == cut:
                    to_ours.write_eof()
                    for call in (ours.do_handshake, ours.read, lambda: ours.write(b"secret"), ours.unwrap):
                        with pytest.raises(ssl.SSLError):
                            call()
                    with pytest.raises(NotAuthenticated):
                        peer_id(ours)
                    return states
                to_ours.write(bytes([byte]))
                if states[-1]:
                    continue
                with contextlib.suppress(ssl.SSLWantReadError):
                    ours.do_handshake()
                with contextlib.suppress(NotAuthenticated):
                    peer_id(ours)
                    states.append(True)
                    break
                states.append(False)
            if states[-1]:
                break
        return states

    @pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
    def test_a_rotation_between_any_two_steps_of_a_handshake_harms_nobody(self, version: ssl.TLSVersion) -> None:
        """Each connection is made under the SVID that it began with, from beginning to end."""
        for moment in range(5):
            sources = [MemorySource.of(LOCAL.svid(path), *BUNDLES) for path in ("/client", "/server")]
            began_with = [source.svid() for source in sources]
            client_side = client_context(sources[0], any_id())
            client_side.maximum_version = version
            ends = begin(client_side, server_context(sources[1], any_id()))
            for step in range(6):
                if step == moment:
                    for source in sources:
                        source.replace(X509Context((LOCAL.svid("/renewed"),), BUNDLES))
                ends[step % 2].step()
            talk(*ends)
            assert [peer_chain(end.tls)[0] for end in ends] == [svid.leaf for svid in began_with[::-1]]


class TestBoundedWork:
    """What a peer sends is looked at only so far. Seconds are of the processor, and far more than it takes."""

    def judged(self, svid_chain: tuple[x509.Certificate, ...], key: object = KEY) -> tuple[object, float]:
        """What our server says to a client with this chain, and the seconds of our own work."""
        client = stranger(server_side=False, chain=svid_chain, key=key)  # type: ignore[arg-type]  # any kind of key
        theirs, ours = begin(client, server_context(OURS, any_id()))
        spent = 0.0
        for _ in range(6):
            theirs.step()
            began = time.thread_time()
            ours.step()
            spent += time.thread_time() - began
        return ours.error, spent

    def test_a_hundred_certificates(self) -> None:
        error, spent = self.judged(GOOD * 100)
        assert isinstance(error, PeerRefused)
        assert isinstance(error.reason_error, VerificationError)
        assert error.reason_error.fault is Fault.TOO_LONG
        assert spent < 1
        assert self.judged(GOOD)[0] is None

    def test_an_rsa_key_of_nearly_16_kbit(self) -> None:
        key = enormous_key()
        assert key.key_size > 15000
        error, spent = self.judged((LOCAL.sign(LOCAL.leaf(), key.public_key()),), key)
        assert isinstance(error, PeerRefused)
        assert isinstance(error.reason_error, VerificationError)
        assert error.reason_error.fault is Fault.WEAK_KEY
        assert spent < 1

    @pytest.mark.parametrize("depth", [1, 20_000])
    def test_nesting_as_deep_as_a_message_can_hold(self, depth: int) -> None:
        unknown = x509.UnrecognizedExtension(UNKNOWN.oid, nested(depth))
        error, spent = self.judged(LOCAL.chain(LOCAL.leaf(extra=[(unknown, False)]), key=KEY))
        assert error is None  # an extension that need not be understood
        assert spent < 1

    @pytest.mark.parametrize("depth", [1, 5_000])
    def test_nesting_in_the_names(self, depth: int) -> None:
        uri = b"spiffe://cluster.local/ns/default/sa/web"
        other = b"\x06\x03\x2a\x03\x04" + tlv(0xA0, nested(depth))
        names = tlv(0x30, tlv(0x86, uri) + tlv(0xA0, other))
        extension = x509.UnrecognizedExtension(x509.SubjectAlternativeName.oid, names)
        error, spent = self.judged(LOCAL.chain(LOCAL.leaf(uris=[], extra=[(extension, True)]), key=KEY))
        assert error is None  # one URI beside a name of another kind, whatever is in that
        assert spent < 1


def hello() -> bytes:
    """The first message of a client."""
    outgoing = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        stranger(server_side=False).wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=NAME).do_handshake()
    return outgoing.read()


def tlv(tag: int, body: bytes) -> bytes:
    """DER of one value."""
    size = len(body)
    if size < 128:
        return bytes([tag, size]) + body
    octets = size.to_bytes((size.bit_length() + 7) // 8)
    return bytes([tag, 0x80 | len(octets)]) + octets + body


def nested(depth: int) -> bytes:
    """Sequences within sequences."""
    parts: list[bytes] = []
    size = 0
    for _ in range(depth):
        header = tlv(0x30, b"\0" * size)[: -size or None]
        parts.append(header)
        size += len(header)
    return b"".join(reversed(parts))


def enormous_key() -> rsa.RSAPrivateKey:
    """Made in no time of two Mersenne primes. The largest modulus that OpenSSL takes has 16,384 bits."""
    p, q, e = 2**11213 - 1, 2**4423 - 1, 65537
    d = pow(e, -1, (p - 1) * (q - 1))
    numbers = rsa.RSAPrivateNumbers(
        p, q, d, rsa.rsa_crt_dmp1(d, p), rsa.rsa_crt_dmq1(d, q), rsa.rsa_crt_iqmp(p, q), rsa.RSAPublicNumbers(e, p * q)
    )
    return numbers.private_key(unsafe_skip_rsa_key_validation=True)
