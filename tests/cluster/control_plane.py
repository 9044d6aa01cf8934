"""A control plane of one's own: etcd, API server and controller manager on free loopback ports, gone afterwards.

Its life is synchronous and knows no event loop, so that one control plane can serve the tests of a whole process, each
of which has a loop of its own. What is done to it meanwhile is asynchronous, and blocks nobody.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import ssl
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from cryptography.hazmat.primitives.asymmetric import rsa

from istio_auth.pem import write_private_key
from tests.cluster import flags
from tests.cluster.build import servers
from tests.cluster.certificates import ClusterAuthority, Credential
from tests.cluster.client import JSON, Client
from tests.cluster.server import Server
from tests.fakes.guard import Guard
from tests.fakes.tcp import closed_port

_ADMIN_GROUP = "system:masters"
_TIMEOUT = 20.0  # seconds for one look whether a server is ready


class ControlPlane:
    """A Kubernetes control plane, from entering to leaving.

    Args:
        binaries: the folder with the servers; built first if not given.
        api_server_flags: more words for the API server.

    Attributes:
        folder: a temporary folder with data, logs and credentials; removed afterwards.
        url: where the API server is.
        ca_file: the certificate that the API server is trusted by.
        kubeconfig: what makes `kubectl`, and any client, the administrator.
        has_controllers: whether a controller manager runs; a folder of `KUBEBUILDER_ASSETS` may have none.
    """

    def __init__(self, binaries: Path | None = None, *, api_server_flags: Sequence[str] = ()) -> None:
        self._more = api_server_flags
        self.binaries = binaries or servers()
        self.has_controllers = (self.binaries / "kube-controller-manager").exists()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="istio-auth-cluster-")))
            guard = Guard()
            stack.callback(guard.end)
            self._prepare()
            self._guard = guard
            self._servers = self._all_servers(guard)
            for server in self._servers:
                stack.callback(server.kill)
                server.start()
            self._end = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end.close()

    @property
    def etcd(self) -> Server:
        """The store."""
        return self._servers[0]

    @property
    def api_server(self) -> Server:
        """The API server."""
        return self._servers[1]

    def add(self, command: Sequence[object], *, log: str, is_ready: Callable[[], bool]) -> Server:
        """Have something else run on it that ends with it. Blocks until it is ready.

        Args:
            command: its program and arguments.
            log: the name of the file, in the folder, for all that it prints.
            is_ready: whether it serves.

        Raises:
            ServerFailed: it ended, or took too long.
        """
        server = Server(command, log=self.folder / log, is_ready=is_ready, guard=self._guard)
        self._end.callback(server.end)
        server.start()
        self._servers.append(server)
        return server

    def require_alive(self) -> None:
        """Make sure that all servers run.

        Raises:
            ServerFailed: one ended by itself.
        """
        for server in self._servers:
            server.require_alive()

    def admin(self) -> Client:
        """A client that may do everything, to be entered where it is used."""
        return self._client(self._admin)

    @property
    def admin_tls(self) -> ssl.SSLContext:
        """What makes a TLS client the administrator."""
        return self._tls

    def kubelet(self, node: str) -> Client:
        """A client that is the kubelet of a node."""
        return self._client(self._authority.client(f"system:node:{node}", "system:nodes"))

    def kubelet_kubeconfig(self, node: str) -> Path:
        """Write a kubeconfig that makes a real kubelet the one of a node; the path of it."""
        credential = self._authority.client(f"system:node:{node}", "system:nodes")
        return self._write_kubeconfig(self.folder / f"{node}.kubeconfig", _embedded(credential))

    def kubelet_certificate(self, node: str, address: str) -> tuple[Path, Path]:
        """Write what the kubelet of a node shows to its callers; the paths of certificate and key."""
        serving = self._authority.server((node, "localhost"), (address, "127.0.0.1"))
        return (
            self._write(f"{node}.pem", serving.certificate),
            self._write(f"{node}.key", serving.key),
        )

    def find(self, path: str) -> JSON | None:
        """The object at a path, asked for by the administrator; None if it is not there, or nobody answers. Blocks."""
        try:
            with urllib.request.urlopen(f"{self.url}{path}", timeout=_TIMEOUT, context=self._tls) as answer:  # noqa: S310  # ours
                found: JSON = json.load(answer)
                return found
        except OSError:
            return None

    def client(self, token: str) -> Client:
        """A client that shows a bearer token."""
        return Client(self.url, ssl.create_default_context(cafile=self.ca_file), token=token)

    def kubeconfig_for(self, token: str, path: Path) -> Path:
        """Write a kubeconfig that shows a bearer token; the path of it."""
        return self._write_kubeconfig(path, {"token": token})

    async def stop_api_server(self) -> None:
        """End the API server as a crash does it: every connection is cut, and new ones are refused."""
        # Asked to end, it would wait a minute for those who watch.
        await asyncio.to_thread(self.api_server.kill)

    async def start_api_server(self) -> None:
        """Start it again, at the same address with the same data, and wait until it is ready."""
        await asyncio.to_thread(self.api_server.start)

    async def stop_etcd(self) -> None:
        """End etcd: the API server goes on, and can neither read nor write."""
        await asyncio.to_thread(self.etcd.kill)

    async def start_etcd(self) -> None:
        """Start it again with the same data, and wait until the API server, if it runs, has found it."""
        await asyncio.to_thread(self.etcd.start)
        if self.api_server.runs:
            await asyncio.to_thread(self.api_server.wait_until_ready)

    def pause_api_server(self) -> None:
        """Let the API server hang: connections are made and requests sent, and nobody answers."""
        self.api_server.pause()

    def resume_api_server(self) -> None:
        """Let it go on."""
        self.api_server.resume()

    def _prepare(self) -> None:
        self._authority = ClusterAuthority()
        self._admin = self._authority.client("kubernetes-admin", _ADMIN_GROUP)
        serving = self._authority.server(
            ("kubernetes.default.svc", "kubernetes", "localhost"), ("127.0.0.1", "10.96.0.1")
        )
        # RSA, as clusters have it: the algorithm is what verifiers of tokens meet.
        tokens = write_private_key(rsa.generate_private_key(public_exponent=65537, key_size=2048))
        self._port, self._etcd_port = closed_port(), closed_port()
        self.url = f"https://127.0.0.1:{self._port}"
        self.ca_file = self._write("ca.pem", self._authority.certificate)
        self._write("server.pem", serving.certificate)
        self._write("server.key", serving.key)
        self._write("service-accounts.key", tokens)
        self._write("kubelet-client.pem", self._admin.certificate)
        self._write("kubelet-client.key", self._admin.key)
        self.kubeconfig = self._write_kubeconfig(self.folder / "kubeconfig", _embedded(self._admin))
        self._tls = self._client_tls(self._admin)

    def _all_servers(self, guard: Guard) -> list[Server]:
        etcd = f"http://127.0.0.1:{self._etcd_port}"

        def server(name: str, words: list[str], health: str) -> Server:
            return Server(
                (self.binaries / name, *words),
                log=self.folder / f"{name}.log",
                is_ready=lambda: self._answers(health),
                guard=guard,
            )

        found = [
            server("etcd", flags.etcd(self.folder, etcd), f"{etcd}/health"),
            server(
                "kube-apiserver",
                [*flags.api_server(self.folder, etcd, self._port), *self._more],
                f"{self.url}/readyz",
            ),
        ]
        if self.has_controllers:
            # It is at work when what it makes for every namespace is there.
            proof = f"{self.url}/api/v1/namespaces/default/serviceaccounts/default"
            found.append(server("kube-controller-manager", flags.controller_manager(self.folder), proof))
        return found

    def _answers(self, url: str) -> bool:
        try:
            with urllib.request.urlopen(url, timeout=_TIMEOUT, context=self._tls) as answer:  # noqa: S310  # ours
                return bool(answer.status == 200)
        except OSError:
            return False

    def _client(self, credential: Credential) -> Client:
        return Client(self.url, self._client_tls(credential))

    def _client_tls(self, credential: Credential) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.ca_file)
        with tempfile.NamedTemporaryFile(dir=self.folder) as file:  # a context loads keys from files alone
            file.write(credential.certificate + credential.key)
            file.flush()
            context.load_cert_chain(file.name)
        return context

    def _write_kubeconfig(self, path: Path, user: dict[str, str]) -> Path:
        cluster = {"server": self.url, "certificate-authority-data": _base64(self._authority.certificate)}
        text = json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "test",
                "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
                "clusters": [{"name": "test", "cluster": cluster}],
                "users": [{"name": "test", "user": user}],
            },
            indent=2,
        )
        return _write_private(path, text.encode())

    def _write(self, name: str, content: bytes) -> Path:
        return _write_private(self.folder / name, content)


def _write_private(path: Path, content: bytes) -> Path:
    with open(path, "wb", opener=lambda name, how: os.open(name, how, 0o600)) as file:
        file.write(content)
    return path


def _embedded(credential: Credential) -> dict[str, str]:
    return {
        "client-certificate-data": _base64(credential.certificate),
        "client-key-data": _base64(credential.key),
    }


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
