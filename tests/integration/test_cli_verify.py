"""`ca-cli verify host:port` against real TLS servers, and against what is none."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from unittest import mock

import pytest

from ca.cli import dial
from istio_auth.svid import X509SVID
from tests.command import Done, ca_cli
from tests.fakes.tcp import closed_port
from tests.vectors.x509_svid import LOCAL, STRANGER, sound_intermediate

WEB = "spiffe://cluster.local/ns/default/sa/web"
Answer = Callable[[socket.socket], None]


@contextmanager
def served(answer: Answer) -> Iterator[str]:
    """An address at which each connection gets this answer, one after the other."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, suppress(OSError):
                connection.settimeout(60)
                answer(connection)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(60)


def tls(folder: Path, svid: X509SVID, *, client_root: bytes = b"", newest: ssl.TLSVersion | None = None) -> Answer:
    """The answer of a TLS server with this SVID; with a root it demands client certificates under it."""
    context = server_side(folder, svid, client_root)
    if newest is not None:
        context.maximum_version = newest

    def answer(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as wrapped:
            wrapped.recv(1)  # until the client goes

    return answer


def server_side(folder: Path, svid: X509SVID, client_root: bytes) -> ssl.SSLContext:
    pem = folder / f"{svid.leaf.serial_number:x}.pem"
    pem.write_bytes(svid.key_pem() + svid.chain_pem())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    context.set_alpn_protocols(["h2"])
    if client_root:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=client_root.decode())
    return context


@contextmanager
def listening_long() -> Iterator[None]:
    """However busy the machine is, the server's verdict comes in time. What is accepted would take as long."""
    with mock.patch.object(dial, "_LISTEN_FOR", 60.0):
        yield


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    file = tmp_path / "bundle.json"
    file.write_bytes(LOCAL.bundle().to_json())
    return file


@pytest.fixture
def client(tmp_path: Path) -> Path:
    folder = tmp_path / "client"
    folder.mkdir()
    svid = LOCAL.svid("/client")
    (folder / "cert-chain.pem").write_bytes(svid.chain_pem())
    (folder / "key.pem").touch(0o600)
    (folder / "key.pem").write_bytes(svid.key_pem())
    return folder


def verify(address: str, bundle: Path, *more: object) -> Done:
    return ca_cli("verify", address, "--trust-bundle", bundle, "--trust-domain", "cluster.local", "-o", "json", *more)


def test_a_server_with_the_expected_identity_is_accepted(tmp_path: Path, bundle: Path) -> None:
    svid = sound_intermediate().svid()
    with served(tls(tmp_path, svid)) as address:
        done = verify(address, bundle, "--id", WEB)
        assert WEB in ca_cli("verify", address, "--trust-bundle", bundle).out
    assert (done.code, done.json["accepted"], done.json["spiffe_id"]) == (0, True, WEB)
    assert [one["serial"] for one in done.json["presented"]] == [f"{one.serial_number:x}" for one in svid.chain]
    assert (done.json["tls"]["version"], done.json["tls"]["protocol"]) == ("TLSv1.3", "h2")


def test_a_server_with_another_identity_is_refused(tmp_path: Path, bundle: Path) -> None:
    with served(tls(tmp_path, LOCAL.svid("/other"))) as address:
        wrong = verify(address, bundle, "--id", WEB)
        right = verify(address, bundle, "--id", "spiffe://cluster.local/other")
    assert (wrong.code, wrong.json["fault"]) == (3, "NOT_WELCOME")
    assert wrong.json["spiffe_id"] == "spiffe://cluster.local/other"
    assert right.code == 0


def test_a_server_of_a_foreign_ca_is_refused_and_still_shown(tmp_path: Path, bundle: Path) -> None:
    with served(tls(tmp_path, STRANGER.svid())) as address:
        done = verify(address, bundle)
    assert (done.code, done.json["fault"]) == (3, "UNTRUSTED")
    assert done.json["presented"][0]["spiffe_id"] == WEB


@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_server_that_demands_a_client_certificate_says_so_and_takes_one(
    tmp_path: Path, bundle: Path, client: Path, newest: ssl.TLSVersion
) -> None:
    root = LOCAL.bundle().to_pem()
    with served(tls(tmp_path, LOCAL.svid(), client_root=root, newest=newest)) as address:
        with listening_long():
            without = verify(address, bundle)
        shown = verify(address, bundle, "--svid", client)
    assert (without.code, without.json["fault"]) == (3, "HANDSHAKE_FAILED")
    assert without.json["presented"][0]["spiffe_id"] == WEB
    assert (shown.code, shown.json["accepted"]) == (0, True)


def test_a_server_that_refuses_the_client_is_told_from_one_that_is_refused(
    tmp_path: Path, bundle: Path, client: Path
) -> None:
    with served(tls(tmp_path, LOCAL.svid(), client_root=STRANGER.bundle().to_pem())) as address, listening_long():
        done = verify(address, bundle, "--svid", client)
    assert (done.code, done.json["fault"]) == (3, "HANDSHAKE_FAILED")
    assert done.json["spiffe_id"] == WEB


def test_a_slow_server_is_listened_to_for_longer(tmp_path: Path, bundle: Path) -> None:
    context = server_side(tmp_path, LOCAL.svid(), LOCAL.bundle().to_pem())

    def slowly(connection: socket.socket) -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(incoming, outgoing, server_side=True)
        for pause in (0, 0.2, 0.8):  # none before the client speaks, one before the answer, one before the verdict
            time.sleep(pause)
            with suppress(ssl.SSLError):  # what it wants more, or its verdict
                tls.do_handshake()
            connection.sendall(outgoing.read())
            incoming.write(connection.recv(65536))

    with served(slowly) as address:
        done = verify(address, bundle)
    assert (done.code, done.json["fault"]) == (3, "HANDSHAKE_FAILED")


def test_a_plaintext_server_is_refused(bundle: Path) -> None:
    def plaintext(connection: socket.socket) -> None:
        connection.recv(100)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with served(plaintext) as address:
        done = verify(address, bundle)
    assert (done.code, done.json["fault"], done.json["presented"]) == (3, "HANDSHAKE_FAILED", [])
    assert "plaintext" in done.json["reason"]


def test_a_server_that_hangs_up_is_refused(bundle: Path) -> None:
    with served(lambda connection: connection.close()) as address:
        done = verify(address, bundle)
    assert (done.code, done.json["fault"]) == (3, "HANDSHAKE_FAILED")


def test_a_server_that_says_nothing_is_not_waited_for_long(bundle: Path) -> None:
    released = threading.Event()

    def silent(_connection: socket.socket) -> None:
        released.wait(20)

    with served(silent) as address:
        done = verify(address, bundle, "--timeout", "200ms")
        released.set()
    assert (done.code, done.out) == (1, "")
    assert done.err.count("\n") == 1


def test_an_address_where_nobody_listens_is_a_failure(bundle: Path) -> None:
    address = f"127.0.0.1:{closed_port()}"
    done = verify(address, bundle)
    assert (done.code, done.out) == (1, "")
    assert address in done.err


def test_a_key_that_others_can_read_is_not_used(bundle: Path, client: Path) -> None:
    (client / "key.pem").chmod(0o644)
    done = verify("127.0.0.1:1", bundle, "--svid", client)
    assert (done.code, done.out) == (2, "")
    assert "chmod" in done.err
