"""A real `istio-ca` process on a cluster, and a caller of it that knows Istio's contract alone."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
from cryptography import x509

from tests.cluster.client import JSON, Client
from tests.cluster.waiting import appears
from tests.fakes.processes import Program, fetch, metric, program, status
from tests.fakes.tcp import closed_port
from tests.fakes.waiting import until
from tests.integration.daemons.foreign import SERVED_AS, ForeignClient, Identity, certificates

ROOTS = "istio-ca-root-cert"
ENV_LABEL = "ca.istio.io/env"  # a namespace with it is managed by the CA of the namespace that it names
TRUST_DOMAIN = "cluster.local"
NOT_PROVEN = (grpc.StatusCode.UNAUTHENTICATED, "request authenticate failure")
NOT_IMPERSONATED = (grpc.StatusCode.UNAUTHENTICATED, "request impersonation authentication failure")
Settings = Mapping[str, str | bool | int | float | Sequence[str]]


class RunningCA:
    """A CA that looks after the namespaces named here and no others, from entering to leaving.

    It can end and start again with the same settings, as often as a test wants.

    Args:
        kubeconfig: the API server, and who the CA is to it.
        folder: for its state, settings and log; replicas have one each.
        namespace: that of the CA itself.
        managed: the namespaces that it manages.
        settings: more of `[kubernetes]`.
        tokens: more of `[kubernetes.tokens]`.
        signing: more of `[signing]`.
        program: the words that start it.

    Attributes:
        process: the process, with its log.
        namespace: that of the CA itself.
    """

    def __init__(
        self,
        kubeconfig: Path,
        folder: Path,
        namespace: str,
        *,
        managed: Sequence[str] = (),
        settings: Settings | None = None,
        tokens: Settings | None = None,
        signing: Settings | None = None,
        program: Sequence[object] = (program("istio-ca"),),
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.namespace = namespace
        self._port, self._health = closed_port(), closed_port()
        general: Settings = {
            "platform": "kubernetes",
            "listen": f"127.0.0.1:{self._port}",
            "metrics_listen": f"127.0.0.1:{self._health}",
            "state_folder": str(folder / "state"),
        }
        of_cluster: Settings = {
            "kubeconfig": str(kubeconfig),
            "namespace": namespace,
            "signer": f"{namespace}.test/workload",
            "sign_requests": False,
        }
        controller: Settings = {"enable_by_default": False, "namespaces": list(managed)}
        sections: dict[str, Settings] = {
            "kubernetes": {**of_cluster, **(settings or {})},
            "kubernetes.controller": controller,
            "kubernetes.tokens": tokens or {},
            "signing": signing or {},
            "log": {"format": "json", "level": "debug"},
        }
        text = _toml(general) + "".join(f"[{name}]\n{_toml(section)}" for name, section in sections.items())
        (folder / "ca.toml").write_text(text)
        self._log = folder / "ca.log"
        self.process = Program([*program, "--config", folder / "ca.toml"], self._log)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.process.runs:
            await self.process.kill()

    @property
    def address(self) -> str:
        """Where it serves gRPC."""
        return f"127.0.0.1:{self._port}"

    async def start(self) -> None:
        """Start it, and return when it is ready."""
        self._begun = self.mark()
        await self.process.start()
        await self.ready()

    async def ready(self) -> None:
        """Return when it says on its port that it is ready."""
        await until(lambda: status(self._health) == 200 or self._refused(), within=120)
        assert not self._refused()

    async def leads(self) -> None:
        """Return when it is the leader."""
        await until(lambda: self.metric("istio_auth_ca_leader") == 1, within=120)

    def pause(self) -> None:
        """Let it stand still, as a machine does that is out of breath."""
        self.process.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self.process.signal(signal.SIGCONT)

    def metric(self, name: str) -> float:
        """What it tells of a metric, its labels included in the name."""
        return metric(self._health, name)

    def readiness(self) -> list[str]:
        """The lines that it answers to who asks whether it is ready."""
        return fetch(self._health, "/readyz").decode().partition("\r\n\r\n")[2].splitlines()

    def mark(self) -> int:
        """How many lines it has logged so far."""
        return len(self.process.lines()) if self._log.exists() else 0

    def told(self, event: str, *, after: int = 0) -> list[JSON]:
        """The lines with this event, not counting the first `after`."""
        return [line for line in self.process.lines()[after:] if line["event"] == event]

    def _refused(self) -> list[JSON]:
        return self.told("can not start", after=self._begun)

    def client(self, roots: str, identity: Identity | None = None) -> ForeignClient:
        """A client that trusts these roots."""
        return ForeignClient(self._port, roots.encode(), identity, served_as=SERVED_AS)


class Caller:
    """Asks a CA for certificates, and hears why not from its log.

    Args:
        ca: the CA.
        roots: by which it is trusted.
    """

    def __init__(self, ca: RunningCA, roots: str) -> None:
        self._ca, self._roots = ca, roots

    @classmethod
    async def of(cls, ca: RunningCA, admin: Client, namespace: str) -> Caller:
        """One that takes the roots from where workloads of a namespace find them."""
        return cls(ca, await published_roots(admin, namespace))

    async def identity(
        self, token: str | None = None, *, shown: Identity | None = None, wanted: str = ""
    ) -> tuple[str, Identity]:
        """The SPIFFE ID that a caller gets, and its certificate.

        Args:
            token: the bearer token.
            shown: the certificate.
            wanted: the identity asked for, if it is not its own.

        Raises:
            AioRpcError: it got none.
        """
        fresh = Identity()
        metadata = {"ImpersonatedIdentity": wanted} if wanted else None
        reply = await self._ca.client(self._roots, shown).create(fresh.csr, token=token, metadata=metadata)
        assert reply[-1].startswith("-----BEGIN CERTIFICATE-----")
        return spiffe_id(certificates(reply[0])[0]), fresh.with_chain(reply)

    async def refusal(
        self, token: str | None = None, *, shown: Identity | None = None, wanted: str = ""
    ) -> tuple[tuple[grpc.StatusCode, str], str]:
        """With which status and words a caller is refused, and the reason that the CA has on record."""
        already = self._ca.mark()
        try:
            given, _ = await self.identity(token, shown=shown, wanted=wanted)
        except grpc.aio.AioRpcError as error:
            line = await self._ca.process.says("certificate refused", after=already)
            assert token is None or token not in str(self._ca.process.lines()[already:])
            return (error.code(), error.details() or ""), str(line["reason"])
        raise AssertionError(f"not refused, but given {given}")


async def published_roots(admin: Client, namespace: str) -> str:
    """The trust bundle that workloads of a namespace see, once it is there."""
    found = await appears(admin, f"/api/v1/namespaces/{namespace}/configmaps/{ROOTS}")
    return str(found["data"]["root-cert.pem"])


def account_id(namespace: str, name: str) -> str:
    """The SPIFFE ID of a service account."""
    return f"spiffe://{TRUST_DOMAIN}/ns/{namespace}/sa/{name}"


def spiffe_id(certificate: x509.Certificate) -> str:
    """The one URI in a certificate."""
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    (uri,) = names.get_values_for_type(x509.UniformResourceIdentifier)
    return uri


def _toml(section: Settings) -> str:
    return "".join(f"{name} = {json.dumps(value)}\n" for name, value in section.items())
