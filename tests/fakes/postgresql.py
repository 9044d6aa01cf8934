"""PostgreSQL as far as TLS goes: a server of our own that speaks its first messages, and the real one.

The first messages are those of PostgreSQL's protocol 3 (its manual, 55.7): SSLRequest, the answer S, TLS, then the
startup message. Our own server answers it with an error that says who the client is; a client raises that.
"""

from __future__ import annotations

import os
import queue
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

from cryptography import x509

from deploy.demo.postgresql import of_machine
from istio_auth import SpiffeID, X509Context, X509Source, is_id, peer_id, server_context, write_svid
from istio_auth.peer import HandshakeRefused
from tests.fakes import guard
from tests.fakes.tcp import closed_port

_SSL_REQUEST = 80877103
PROGRAMS = of_machine()
INSTALLED = PROGRAMS is not None
_USER = 65534 if os.geteuid() == 0 else None  # PostgreSQL does not run as root
GROUP = 65534 if os.geteuid() == 0 else os.getegid()


class GreetingServer:
    """Lets one SPIFFE ID in over TLS, and tells each such client who it is."""

    def __init__(self, source: X509Source, client: SpiffeID) -> None:
        self._context = server_context(source, is_id(client))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.refusals: queue.Queue[str] = queue.Queue()
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        with suppress(OSError):  # at the end
            while True:
                connection, _ = self._listener.accept()
                connection.settimeout(10)
                with connection, suppress(OSError):
                    self._greet(connection)

    def _greet(self, connection: socket.socket) -> None:
        size, request = struct.unpack("!II", _exactly(connection, 8))
        assert (size, request) == (8, _SSL_REQUEST)
        connection.sendall(b"S")
        try:
            with self._context.wrap_socket(connection, server_side=True) as tls:
                startup = _exactly(tls, struct.unpack("!I", _exactly(tls, 4))[0] - 4)
                user = startup[4:].split(b"\0")[1].decode()
                leaf = x509.load_der_x509_certificate(tls.getpeercert(binary_form=True) or b"")
                tls.sendall(_error(f"{user} is {peer_id(tls)} by {leaf.serial_number:x}"))
        except HandshakeRefused as error:
            self.refusals.put(str(error.reason_error))


@contextmanager
def postgresql(context: X509Context) -> Generator[tuple[int, Path]]:
    """The real server, which demands a certificate by the roots of its context from whoever comes over TCP.

    Yields:
        its port, and the folder of its SVID, which is its own user's.
    """
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        svid = Path(place) / "svid"
        write_svid(svid, context)
        if _USER is not None:
            for path in (svid, *svid.rglob("*")):
                os.chown(path, _USER, _USER, follow_symlinks=False)
        with postgresql_over(svid) as port:
            yield port, svid


@contextmanager
def postgresql_over(svid: Path, *, data: Path | None = None) -> Generator[int]:
    """The real server over a folder of files that somebody else keeps, and that its user can read.

    Args:
        svid: the folder of its SVID.
        data: where its own files shall be; `postmaster.pid` is there while it runs.

    Yields:
        its port.
    """
    with tempfile.TemporaryDirectory() as place:
        folder, port = Path(place) / "database", closed_port()
        Path(place).chmod(0o755)
        folder.mkdir(mode=0o700)
        files = data or folder / "files"
        if _USER is not None:
            os.chown(folder, _USER, _USER)
        _run("initdb", "--no-sync", "--auth=trust", "--username=web", "--pgdata", files)
        rule = "hostssl all all 127.0.0.1/32 trust clientcert=verify-ca\n"
        (files / "pg_hba.conf").write_text(rule)
        settings = {
            "port": port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "fsync": "off",
            "ssl": "on",
            "ssl_cert_file": svid / "cert-chain.pem",
            "ssl_key_file": svid / "key.pem",
            "ssl_ca_file": svid / "root-cert.pem",
        }
        options = [f"--{name}={value}" for name, value in settings.items()]
        with (folder / "log").open("wb") as log:
            command = _as_its_user(_program("postgres"), "-D", files, *options)
            server = subprocess.Popen(command, stdout=log, stderr=log, process_group=guard.group())
        try:
            _until_it_is_ready(server, folder / "log")
            yield port
        finally:
            server.send_signal(signal.SIGINT)  # at SIGTERM it would wait for its clients
            guard.ended(server)


def _until_it_is_ready(server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and server.poll() is None:
        if "ready to accept connections" in log.read_text():
            return
        time.sleep(0.02)
    raise AssertionError(log.read_text())


def _run(program: str, *arguments: str | Path) -> None:
    command = _as_its_user(_program(program), *arguments)
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0, done.stderr


def _as_its_user(*command: str | Path) -> list[str]:
    """Not by Python's own way to another user: that forks this process, which gRPC's threads do not bear."""
    other = [] if _USER is None else ["setpriv", f"--reuid={_USER}", f"--regid={_USER}", "--clear-groups"]
    return [*other, *map(str, command)]


def _program(name: str) -> Path:
    assert PROGRAMS is not None
    return PROGRAMS / name


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        if not (more := connection.recv(size - len(data))):
            raise ConnectionError("closed in the middle")
        data += more
    return data


def _error(message: str) -> bytes:
    fields = b"SFATAL\0VFATAL\0C28000\0M" + message.encode() + b"\0\0"
    return b"E" + struct.pack("!I", len(fields) + 4) + fields
