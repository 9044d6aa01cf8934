"""PostgreSQL as far as TLS goes: a server of our own that speaks its first messages, and the real one.

The first messages are those of PostgreSQL's protocol 3 (its manual, 55.7): SSLRequest, the answer S, TLS, then the
startup message. Our own server answers it with an error that says who the client is; a client raises that.
"""

from __future__ import annotations

import os
import queue
import shutil
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

from istio_auth import SpiffeID, X509Context, X509Source, is_id, peer_id, server_context, write_svid
from istio_auth.peer import HandshakeRefused
from tests.fakes.tcp import closed_port

_SSL_REQUEST = 80877103
INSTALLED = shutil.which("initdb") is not None
_USER = 65534 if os.geteuid() == 0 else None  # PostgreSQL does not run as root


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
        folder, port = Path(place) / "database", closed_port()
        Path(place).chmod(0o755)
        folder.mkdir(mode=0o700)
        write_svid(folder / "svid", context)
        if _USER is not None:
            for path in (folder, *folder.rglob("*")):
                os.chown(path, _USER, _USER, follow_symlinks=False)
        _run("initdb", "--no-sync", "--auth=trust", "--username=web", "--pgdata", folder / "files")
        rule = "hostssl all all 127.0.0.1/32 trust clientcert=verify-ca\n"
        (folder / "files" / "pg_hba.conf").write_text(rule)
        settings = {
            "port": port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "fsync": "off",
            "ssl": "on",
            "ssl_cert_file": folder / "svid" / "cert-chain.pem",
            "ssl_key_file": folder / "svid" / "key.pem",
            "ssl_ca_file": folder / "svid" / "root-cert.pem",
        }
        options = [f"--{name}={value}" for name, value in settings.items()]
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(
                [_program("postgres"), "-D", folder / "files", *options],
                stdout=log,
                stderr=log,
                user=_USER,
                group=_USER,
            )
        try:
            _until_it_listens(server, port, folder / "log")
            yield port, folder / "svid"
        finally:
            server.terminate()
            server.wait(20)


def _until_it_listens(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and server.poll() is None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.02)
    raise AssertionError(log.read_text())


def _run(program: str, *arguments: str | Path) -> None:
    done = subprocess.run(
        [_program(program), *arguments], capture_output=True, text=True, check=False, user=_USER, group=_USER, cwd="/"
    )
    assert done.returncode == 0, done.stderr


def _program(name: str) -> Path:
    """Beside `initdb`, wherever that really is: not all of them are always on the path."""
    return Path(shutil.which("initdb") or "").resolve().with_name(name)


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
