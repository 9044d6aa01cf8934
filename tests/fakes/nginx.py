"""The real nginx: that of the machine, or Debian's, taken once from its package into the user's cache."""

from __future__ import annotations

import functools
import shutil
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from tests.fakes import debian, guard
from tests.fakes.tcp import closed_port

_CONFIGURATION = """
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log info;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port} ssl;
        ssl_certificate {svid}/tls.crt;
        ssl_certificate_key {svid}/tls.key;
        ssl_client_certificate {svid}/ca.crt;
        ssl_verify_client on;
        ssl_session_tickets off;
        location / {{ return 200 "$ssl_client_serial"; }}
    }}
}}
"""


@functools.cache
def program() -> Path | None:
    """The program; None where there is no way to it."""
    if (found := shutil.which("nginx")) is not None:
        return Path(found)
    package = debian.unpacked("nginx")
    return package / "usr/sbin/nginx" if package else None


@contextmanager
def nginx(folder: Path, svid: Path) -> Generator[int]:
    """A server that demands a certificate and answers with its serial number.

    Args:
        folder: where its own files are; `nginx.pid` is there while it runs.
        svid: a folder with tls.crt, tls.key and ca.crt that somebody keeps.

    Yields:
        its port.
    """
    port = closed_port()
    found = program()
    assert found is not None
    (folder / "nginx.conf").write_text(_CONFIGURATION.format(folder=folder, port=port, svid=svid))
    with (folder / "output").open("wb") as output:
        command = [str(each) for each in (found, "-c", folder / "nginx.conf", "-p", folder, "-e", folder / "error.log")]
        server = subprocess.Popen(command, stdout=output, stderr=output, process_group=guard.group())
    try:
        deadline = time.monotonic() + 60
        while not (folder / "nginx.pid").exists():
            assert server.poll() is None, (folder / "output").read_text()
            assert time.monotonic() < deadline, "nginx did not start"
            time.sleep(0.02)
        yield port
    finally:
        server.terminate()
        guard.ended(server)
