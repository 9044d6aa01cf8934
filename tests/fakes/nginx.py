"""The real nginx: that of the machine, or Debian's, taken once from its package into the user's cache."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

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
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "istio-auth" / "nginx"
    if not (cache / "usr/sbin/nginx").exists() and shutil.which("apt-get") and shutil.which("dpkg-deb"):
        cache.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache.parent) as place:
            fetched = subprocess.run(["apt-get", "download", "nginx"], cwd=place, capture_output=True, check=False)
            packages = list(Path(place).glob("nginx_*.deb"))
            if fetched.returncode == 0 and packages:
                subprocess.run(["dpkg-deb", "-x", packages[0], Path(place) / "nginx"], check=True)
                with suppress(OSError):  # another test was faster
                    (Path(place) / "nginx").rename(cache)
    return cache / "usr/sbin/nginx" if (cache / "usr/sbin/nginx").exists() else None


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
        server = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + 20
        while not (folder / "nginx.pid").exists():
            assert server.poll() is None, (folder / "output").read_text()
            assert time.monotonic() < deadline, "nginx did not start"
            time.sleep(0.02)
        yield port
    finally:
        server.terminate()
        server.wait(20)
