"""Whatever is called first, no byte passes before the peer was judged; and none at all after it was refused."""

from __future__ import annotations

import contextlib
import io
import select
import socket
import ssl
import tempfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

import pytest

from istio_auth.authorize import any_id
from istio_auth.errors import Fault, NotAuthenticated, NotReady, VerificationError
from istio_auth.peer import HandshakeRefused, PeerRefused, verified_peer
from istio_auth.pem import write_der
from istio_auth.sources.memory import MemorySource
from istio_auth.tls import client_context, peer_id, server_context
from istio_auth.tls.judged import JudgedObject, JudgedSocket
from tests.fakes.tcp import closed_port, pair
from tests.fakes.tls import NAME, End, begin, go_on, stranger, talk
from tests.vectors.x509_svid import ALL, BUNDLES, FEDERATED, KEY, LOCAL, Chain

OURS = MemorySource.of(LOCAL.svid("/ours"), *BUNDLES)
GOOD = LOCAL.chain(key=KEY)
# It chains to a root that OpenSSL is given, so that nothing but the verdict stands in its way.
BAD = ALL["local-name-signed-by-federated-ca"].wrong
WORD = b"hello"
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


def into(receive: Callable[[bytearray], int]) -> bytes:
    room = bytearray(len(WORD))
    return bytes(room[: receive(room)])


def from_file(connection: ssl.SSLSocket) -> int:
    with tempfile.TemporaryFile() as file:
        file.write(WORD)
        file.seek(0)
        return connection.sendfile(file)


def through_file(connection: ssl.SSLSocket) -> int:
    with connection.makefile("wb") as file:
        return file.write(WORD)


def from_made_file(connection: ssl.SSLSocket) -> bytes:
    with connection.makefile("rb") as file:
        return file.read(len(WORD))


READS: dict[str, Callable[[ssl.SSLSocket], bytes]] = {
    "read": lambda s: s.read(len(WORD)),
    "read_into": lambda s: into(lambda room: int(s.read(len(room), room))),
    "recv": lambda s: s.recv(len(WORD)),
    "recv_into": lambda s: into(s.recv_into),
    "makefile": from_made_file,
}
WRITES: dict[str, Callable[[ssl.SSLSocket], object]] = {
    "write": lambda s: s.write(WORD),
    "send": lambda s: s.send(WORD),
    "sendall": lambda s: s.sendall(WORD),
    "sendfile": from_file,
    "makefile": through_file,
}
# They pass no bytes over TLS, whoever the peer is; before the verdict they must not become plain text either.
OTHERS: dict[str, Callable[[ssl.SSLSocket], object]] = {
    "recvfrom": lambda s: s.recvfrom(5),
    "recvfrom_into": lambda s: s.recvfrom_into(bytearray(5)),
    "recvmsg": lambda s: s.recvmsg(5),  # type: ignore[arg-type]  # typeshed: never to be called
    "recvmsg_into": lambda s: s.recvmsg_into([bytearray(5)]),  # type: ignore[arg-type]  # the same
    "sendmsg": lambda s: s.sendmsg([WORD]),  # type: ignore[arg-type]  # the same
    "sendto": lambda s: s.sendto(WORD, ("127.0.0.1", 9)),
    "unwrap": lambda s: s.unwrap(),
    "post-handshake": lambda s: s.verify_client_post_handshake(),
}
SIDES = ["client", "server"]


def wrapped(plain: socket.socket, side: str) -> ssl.SSLSocket:
    context = client_context(OURS, any_id()) if side == "client" else server_context(OURS, any_id())
    return context.wrap_socket(plain, server_side=side == "server", do_handshake_on_connect=False)


def behave(plain: socket.socket, side: str, chain: Chain, version: ssl.TLSVersion, *, speak: bool) -> bytes:
    """A peer without rules: says its word as soon as its own handshake is over, and tells what it heard."""
    context = stranger(server_side=side == "client", chain=chain, key=KEY)
    context.minimum_version = context.maximum_version = version
    try:
        with context.wrap_socket(plain, server_side=side == "client", suppress_ragged_eofs=True) as peer:
            if speak:
                peer.sendall(WORD)
            return b"".join(iter(lambda: peer.recv(100), b""))
    except OSError:
        return b""


class Meeting:
    """Ours, and a stranger in a thread of its own; `heard` is what the stranger was told."""

    def __init__(self, side: str, chain: Chain, version: ssl.TLSVersion, *, speak: bool = True) -> None:
        self._pair = pair()
        dialled, accepted = self._pair.__enter__()
        plain, theirs = (dialled, accepted) if side == "client" else (accepted, dialled)
        self._pool = ThreadPoolExecutor(1)
        self._theirs: Future[bytes] = self._pool.submit(behave, theirs, side, chain, version, speak=speak)
        self.ours = wrapped(plain, side)

    def heard(self) -> bytes:
        with contextlib.suppress(OSError):
            self.ours.shutdown(socket.SHUT_WR)
        heard = self._theirs.result(10)
        self.ours.close()  # not before: what we have not read would reset the connection, and lose what was written
        return heard

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.heard()
        self._pool.shutdown()
        self._pair.__exit__(None, None, None)


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
@pytest.mark.parametrize("side", SIDES)
class TestSockets:
    @pytest.mark.parametrize("first", [*READS, "do_handshake"])
    def test_reading_first_judges_first(self, first: str, side: str, version: ssl.TLSVersion) -> None:
        read = READS.get(first, lambda s: s.do_handshake() or b"")
        with Meeting(side, BAD, version) as meeting:
            for call in (read, read, *READS.values(), *WRITES.values()):
                with pytest.raises(PeerRefused) as caught:
                    call(meeting.ours)
                assert isinstance(caught.value.reason_error, VerificationError)
                assert caught.value.reason_error.fault is Fault.UNTRUSTED
            with pytest.raises(NotAuthenticated):
                peer_id(meeting.ours)
            assert meeting.heard() == b""
        with Meeting(side, GOOD, version) as meeting:
            assert (read(meeting.ours) or meeting.ours.read(5)) == WORD
            assert peer_id(meeting.ours).path == "/ns/default/sa/web"

    @pytest.mark.parametrize("first", WRITES)
    def test_writing_first_judges_first(self, first: str, side: str, version: ssl.TLSVersion) -> None:
        write = WRITES[first]
        with Meeting(side, BAD, version, speak=False) as meeting:
            for call in (write, write, *WRITES.values(), *READS.values()):
                with pytest.raises(PeerRefused):
                    call(meeting.ours)
            assert meeting.heard() == b""
        with Meeting(side, GOOD, version, speak=False) as meeting:
            write(meeting.ours)
            assert meeting.heard() == WORD

    @pytest.mark.parametrize("first", OTHERS)
    def test_other_calls_move_nothing(self, first: str, side: str, version: ssl.TLSVersion) -> None:
        with Meeting(side, BAD, version) as meeting:
            with pytest.raises((OSError, ValueError, NotImplementedError)):
                OTHERS[first](meeting.ours)
            with pytest.raises(PeerRefused):
                meeting.ours.recv(5)
            assert meeting.heard() == b""


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("chain", [BAD, GOOD], ids=["bad", "good"])
def test_a_socket_that_does_not_block_is_judged_step_by_step(side: str, chain: Chain) -> None:
    with pair() as (dialled, accepted), ThreadPoolExecutor(1) as pool:
        plain, theirs = (dialled, accepted) if side == "client" else (accepted, dialled)
        ours = wrapped(plain, side)
        ours.setblocking(False)
        with pytest.raises(ssl.SSLWantReadError):
            ours.recv(5)
        with pytest.raises(NotAuthenticated):
            peer_id(ours)
        peer = pool.submit(behave, theirs, side, chain, ssl.TLSVersion.TLSv1_3, speak=True)
        if chain is GOOD:
            assert received(ours) == WORD
        else:
            with pytest.raises(PeerRefused):
                received(ours)
        ours.close()
        assert peer.result(10) == b""


def received(connection: ssl.SSLSocket) -> bytes:
    """What comes in on a socket that does not block."""
    while select.select([connection], [], [], 10)[0]:
        with contextlib.suppress(ssl.SSLWantReadError):
            return connection.recv(5)
    raise AssertionError("nothing came")


def test_a_handshake_that_waits_too_long_can_be_taken_up_again() -> None:
    with pair() as (dialled, accepted), ThreadPoolExecutor(1) as pool:
        ours = wrapped(accepted, "server")
        ours.settimeout(0.02)
        with pytest.raises(TimeoutError):
            ours.recv(5)
        with pytest.raises(NotAuthenticated):
            verified_peer(ours)
        theirs = pool.submit(behave, dialled, "server", GOOD, ssl.TLSVersion.TLSv1_3, speak=True)
        ours.settimeout(10)
        assert ours.recv(5) == WORD
        ours.close()
        theirs.result(10)


@pytest.mark.parametrize("side", SIDES)
def test_a_handshake_on_connect_judges_before_the_socket_is_handed_out(side: str) -> None:
    with pair() as (dialled, accepted), ThreadPoolExecutor(1) as pool:
        plain, theirs = (dialled, accepted) if side == "client" else (accepted, dialled)
        peer = pool.submit(behave, theirs, side, BAD, ssl.TLSVersion.TLSv1_3, speak=True)
        context = client_context(OURS, any_id()) if side == "client" else server_context(OURS, any_id())
        with pytest.raises(PeerRefused):
            context.wrap_socket(plain, server_side=side == "server")
        assert peer.result(10) == b""


class TestNoFallBackToPlainText:
    """Python's own socket sends plain text when its TLS layer is gone."""

    def test_after_a_connect_that_found_nobody(self) -> None:
        with client_context(OURS, any_id()).wrap_socket(socket.socket()) as ours:
            with pytest.raises(ConnectionRefusedError):
                ours.connect(("127.0.0.1", closed_port()))
            self.moves_nothing(ours)

    @pytest.mark.parametrize("connect", ["connect", "connect_ex"])
    def test_after_a_connect_that_found_a_stranger(self, connect: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
            peer = pool.submit(self.stranger_behind, listener)
            with client_context(OURS, any_id()).wrap_socket(socket.socket()) as ours:
                ours.settimeout(10)
                with pytest.raises(PeerRefused):
                    getattr(ours, connect)(listener.getsockname())
                self.moves_nothing(ours)
                ours.close()
            assert peer.result(10) == b""

    def test_before_any_connect(self) -> None:
        with client_context(OURS, any_id()).wrap_socket(socket.socket()) as ours:
            self.moves_nothing(ours)

    def test_after_shutdown(self) -> None:
        with pair() as (dialled, accepted), ThreadPoolExecutor(1) as pool:
            peer = pool.submit(behave, dialled, "server", GOOD, ssl.TLSVersion.TLSv1_3, speak=False)
            ours = wrapped(accepted, "server")
            ours.do_handshake()
            ours.shutdown(socket.SHUT_WR)
            self.moves_nothing(ours)
            ours.close()
            assert peer.result(10) == b""

    def test_unless_both_ends_have_agreed_on_it(self) -> None:
        with Meeting("server", GOOD, ssl.TLSVersion.TLSv1_2, speak=False) as meeting:
            meeting.ours.do_handshake()
            meeting.ours.setblocking(False)
            with pytest.raises(ssl.SSLWantReadError):
                meeting.ours.unwrap()
        with pair() as (dialled, accepted), ThreadPoolExecutor(1) as pool:
            peer = pool.submit(self.leave_tls, dialled)
            plain = wrapped(accepted, "server").unwrap()
            plain.sendall(WORD)
            assert plain.recv(5) == b"plain"
            assert peer.result(10) == WORD
            plain.close()

    @staticmethod
    def leave_tls(plain: socket.socket) -> bytes:
        context = stranger(server_side=False, chain=GOOD, key=KEY)
        bare = context.wrap_socket(plain).unwrap()
        bare.sendall(b"plain")
        word = bare.recv(5)
        bare.close()
        return word

    @staticmethod
    def stranger_behind(listener: socket.socket) -> bytes:
        connection, _ = listener.accept()
        connection.settimeout(10)
        return behave(connection, "client", BAD, ssl.TLSVersion.TLSv1_3, speak=True)

    @staticmethod
    def moves_nothing(ours: ssl.SSLSocket) -> None:
        for call in (*READS.values(), *WRITES.values()):
            with pytest.raises((OSError, ValueError)):
                call(ours)


OBJECT_CALLS: dict[str, Callable[[ssl.SSLObject], object]] = {
    "read": lambda tls: tls.read(5),
    "read_into": lambda tls: into(lambda room: int(tls.read(len(room), room))),
    "write": lambda tls: tls.write(WORD),
    "unwrap": lambda tls: tls.unwrap(),
    "do_handshake": lambda tls: tls.do_handshake(),
}


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("first", OBJECT_CALLS)
def test_over_memory_every_call_judges_first(first: str, side: str, version: ssl.TLSVersion) -> None:
    def met(chain: Chain) -> tuple[End, End]:
        other = stranger(server_side=side == "client", chain=chain, key=KEY)
        other.minimum_version = other.maximum_version = version
        if side == "client":
            ours, theirs = begin(client_context(OURS, any_id()), other)
        else:
            theirs, ours = begin(other, server_context(OURS, any_id()))
        for _ in range(6):
            theirs.step()
            if theirs.done and not ours.error:
                theirs.tls.write(WORD)
            try:
                OBJECT_CALLS[first](ours.tls)
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLError as error:
                ours.error = error
        return ours, theirs

    ours, theirs = met(BAD)
    assert isinstance(ours.error, PeerRefused)
    for call in OBJECT_CALLS.values():
        with pytest.raises(PeerRefused):
            call(ours.tls)
    with pytest.raises((ssl.SSLError, AssertionError)):
        assert theirs.tls.read()
    with pytest.raises(NotAuthenticated):
        peer_id(ours.tls)
    ours, theirs = met(GOOD)
    assert peer_id(ours.tls).path == "/ns/default/sa/web"
    theirs.step()
    assert theirs.done
    if first == "write":
        assert theirs.tls.read(5) == WORD


@pytest.mark.parametrize("make", [client_context, server_context])
def test_a_second_certificate_is_never_asked_for(make: Callable[..., ssl.SSLContext]) -> None:
    client, server = begin(client_context(OURS, any_id()), server_context(OURS, any_id()))
    go_on(client, server)
    ours = client if make is client_context else server
    with pytest.raises(HandshakeRefused):
        ours.tls.verify_client_post_handshake()
    talk(client, server)


def test_a_context_put_in_during_the_handshake_changes_no_verdict() -> None:
    """`sni_callback` may exchange the context of a connection; the peer is judged by ours nevertheless."""
    other = stranger(server_side=True, chain=LOCAL.chain(key=KEY), key=KEY)
    for root in (LOCAL, FEDERATED):
        other.load_verify_locations(cadata=write_der(root.certificate))

    def exchange(connection: ssl.SSLObject, _name: str, _context: ssl.SSLContext) -> None:
        connection.context = other

    server = server_context(OURS, any_id())
    server.sni_callback = exchange
    for chain, fault in (((), Fault.EMPTY), (BAD, Fault.UNTRUSTED)):
        client, ours = begin(stranger(server_side=False, chain=chain, key=KEY), server)
        go_on(client, ours)
        assert isinstance(ours.refusal, VerificationError)
        assert ours.refusal.fault is fault
    client, ours = begin(stranger(server_side=False, chain=GOOD, key=KEY), server)
    go_on(client, ours)
    talk(client, ours)
    assert ours.tls.context is other


def test_a_context_put_in_before_the_handshake_is_refused() -> None:
    """Nobody would judge the peer then."""
    _, server = begin(stranger(server_side=False, chain=GOOD, key=KEY), server_context(OURS, any_id()))
    server.tls.context = stranger(server_side=True, chain=LOCAL.chain(key=KEY), key=KEY)
    for call in OBJECT_CALLS.values():
        with pytest.raises(HandshakeRefused) as caught:
            call(server.tls)
        assert isinstance(caught.value.reason_error, NotReady)


def test_our_connections_are_what_libraries_expect() -> None:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    over_memory = client_context(OURS, any_id()).wrap_bio(incoming, outgoing, server_hostname=NAME)
    assert isinstance(over_memory, JudgedObject)
    assert over_memory.server_hostname == NAME
    assert not over_memory.server_side
    with pair() as (dialled, _):
        over_socket = client_context(OURS, any_id()).wrap_socket(
            dialled, do_handshake_on_connect=False, server_hostname=NAME
        )
        assert isinstance(over_socket, JudgedSocket)
        assert over_socket.server_hostname == NAME
        assert isinstance(over_socket.makefile("rb"), io.BufferedReader)
        over_socket.close()


IN_THE_WAY_OF_BYTES = ("read", "write", "recv", "recv_into", "send", "sendall", "sendfile")


def test_a_welcome_peer_leaves_nothing_of_ours_in_the_way_of_bytes() -> None:
    client, server = begin(client_context(OURS, any_id()), server_context(OURS, any_id()))
    go_on(client, server)
    talk(client, server)
    for end in (client, server):
        assert (type(end.tls).read, type(end.tls).write) == (ssl.SSLObject.read, ssl.SSLObject.write)
    with Meeting("server", GOOD, ssl.TLSVersion.TLSv1_3) as meeting:
        before = type(meeting.ours)
        assert meeting.ours.recv(len(WORD)) == WORD
        for name in IN_THE_WAY_OF_BYTES:
            assert getattr(type(meeting.ours), name) is getattr(ssl.SSLSocket, name)
        meeting.ours.shutdown(socket.SHUT_WR)
        assert type(meeting.ours) is before  # the TLS layer is gone: nothing may pass as plain text
