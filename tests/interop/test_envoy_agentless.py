"""Real sidecars without an agent, on volumes that change as Kubernetes changes them: mutual TLS, and each change."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
import typer
import yaml
from cryptography import x509
from typer.testing import CliRunner

from deploy.demo.application import Application, application
from deploy.demo.client import CallFailed, http_get, tcp_echo, tls_client
from deploy.demo.envoy import Envoy, envoy_binary, start_envoy
from deploy.demo.processes import Processes, run
from deploy.demo.waiting import holds_within
from istio_auth.bundle import BundleSet, TrustBundle
from istio_auth.sources.svid_files import SVIDLayout
from istio_auth.spiffe_id import SpiffeID
from istio_auth.svid import X509SVID
from istio_auth.x509_source import X509Context
from node_agent.layout import Layout
from node_agent.sidecar.command import sidecar_config
from tests.fakes.authority import FakeAuthority
from tests.fakes.svid_folder import SVIDFolder
from tests.interop.mesh import BACKEND, FRONTEND, INTRUDER

SERVER, CLIENT = "listener.inbound_0.ssl", "cluster.outbound_backend.ssl"


@dataclass
class Volume:
    """What Kubernetes mounts for a pod and changes by one link that is swapped; roots may be in one of their own."""

    folder: Path
    layout: Layout = Layout.ISTIO
    roots_apart: bool = False

    def __post_init__(self) -> None:
        self._own = SVIDFolder(self.folder / "identity", self.layout.names)
        self._apart = SVIDFolder(self.folder / "roots", SVIDLayout("x", "y", "anchors.pem"))
        for each in (self._own, self._apart):
            each.path.mkdir(parents=True)

    @property
    def flags(self) -> tuple[str, ...]:
        apart = ("--roots", str(self._apart.path / "anchors.pem")) if self.roots_apart else ()
        return "--agentless", str(self._own.path), "--layout", self.layout.value, *apart

    def mount(self, svid: X509SVID, *authorities: FakeAuthority) -> None:
        bundle = TrustBundle(svid.id.trust_domain, tuple(each.root for each in authorities))
        for volume in (self._own, self._apart):
            for step in volume.by_swapping(X509Context((svid,), BundleSet((bundle,)))):
                step()

    def spoil(self, name: str, content: bytes) -> None:
        """Mount the same again, with one file that is no good."""
        folder = self._own.path
        fresh = {each: (folder / each).read_bytes() for each in self._own.layout.names} | {name: content}
        (folder / "..spoilt").mkdir()
        for each, old in fresh.items():
            (folder / "..spoilt" / each).write_bytes(old)
        (folder / "..data_tmp").symlink_to("..spoilt")
        (folder / "..data_tmp").replace(folder / "..data")


@dataclass
class Pod:
    """A sidecar on its volume."""

    envoy: Envoy
    volume: Volume
    port: int

    async def mount(self, svid: X509SVID, *authorities: FakeAuthority) -> None:
        """Mount these, and wait until Envoy has them."""
        self.volume.mount(svid, *authorities)
        await self.has(svid, *authorities)

    async def has(self, svid: X509SVID, *authorities: FakeAuthority) -> None:
        wanted = {svid.leaf.serial_number, *(each.root.serial_number for each in authorities)}

        async def held() -> bool:
            every = json.loads(await self.envoy.ask("/certs"))["certificates"]
            return wanted == {int(one["serial_number"], 16) for each in every for one in _leaf_and_roots(each)}

        assert await holds_within(60, held)

    async def count(self, counter: str) -> int:
        return (await self.envoy.counters(counter.replace(".", r"\."))).get(counter, 0)

    async def said(self, words: str) -> None:
        """Wait until Envoy has logged these words."""

        async def heard() -> bool:
            return words in self.envoy.child.errors.read_text()

        assert await holds_within(60, heard), words

    @property
    def log(self) -> str:
        return self.envoy.child.output.read_text()


def _leaf_and_roots(each: dict[str, list[dict[str, str]]]) -> list[dict[str, str]]:
    return each.get("cert_chain", [])[:1] + each.get("ca_cert", [])


class Cluster:
    """Pods without agents, and the applications behind them."""

    def __init__(self, folder: Path, processes: Processes, app: Application) -> None:
        self.folder, self.app, self._processes = folder, app, processes

    async def backend(self, volume: Volume, *flags: str, protocol: str = "http") -> Pod:
        port = self.app.tcp_port if protocol == "tcp" else self.app.http_port
        places = ("--inbound", f"127.0.0.1:0=127.0.0.1:{port}", "--protocol", protocol)
        return await self._start("backend", BACKEND, volume, *places, "--allow", str(FRONTEND), *flags)

    async def frontend(self, volume: Volume, backend: Pod, *, protocol: str = "http") -> Pod:
        upstream = f"backend/{protocol}=127.0.0.1:0->127.0.0.1:{backend.port},{BACKEND}"
        return await self._start("frontend", FRONTEND, volume, "--upstream", upstream, "--max-connection-age", "100ms")

    async def _start(self, name: str, spiffe_id: SpiffeID, volume: Volume, *flags: str) -> Pod:
        folder = self.folder / name / "envoy"
        app = typer.Typer(add_completion=False)
        app.command()(sidecar_config)
        words = ["--id", str(spiffe_id), *volume.flags, "--output", str(folder), "--admin", f"unix:{folder}/admin.sock"]
        told = CliRunner().invoke(app, [*words, *flags])
        assert (told.exit_code, told.stdout) == (0, "")
        envoy = await start_envoy(self._processes, name, json.loads((folder / "envoy.json").read_text()), folder)
        await envoy.wait_ready()
        (port,) = (await envoy.ports()).values()
        return Pod(envoy, volume, port)


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    with tempfile.TemporaryDirectory(prefix="pods-") as name:  # pytest's own folders are too long for Unix sockets
        async with AsyncExitStack() as stack:
            processes = await stack.enter_async_context(Processes(Path(name)))
            yield Cluster(Path(name), processes, await stack.enter_async_context(application("backend")))


async def both(cluster: Cluster, authority: FakeAuthority, *, protocol: str = "http") -> tuple[Pod, Pod]:
    """A backend with a credential bundle and the roots in two volumes, and a frontend with the secret `istio.<sa>`."""
    volumes = (
        Volume(cluster.folder / "backend", Layout.CREDENTIAL_BUNDLE, roots_apart=True),
        Volume(cluster.folder / "frontend"),
    )
    for volume, spiffe_id in zip(volumes, (BACKEND, FRONTEND), strict=True):
        volume.mount(authority.svid(spiffe_id.path), authority)
    backend = await cluster.backend(volumes[0], protocol=protocol)
    return backend, await cluster.frontend(volumes[1], backend, protocol=protocol)


@asynccontextmanager
async def traffic(port: int) -> AsyncIterator[Callable[[], int]]:
    """Connections one after the other, each judged anew; none may fail. Tells how many there were."""
    count, ending = 0, asyncio.Event()

    async def call() -> None:
        nonlocal count
        while not ending.is_set():
            await tcp_echo(port)
            count += 1

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(call())
        yield lambda: count
        ending.set()


async def more(count: Callable[[], int], number: int = 3) -> None:
    before = count()

    async def came() -> bool:
        return count() >= before + number

    assert await holds_within(60, came, every=0.01)


async def answered(port: int) -> None:
    """Wait until calls get through."""

    async def through() -> bool:
        try:
            return (await http_get(port)).caller == str(FRONTEND)
        except CallFailed:
            return False

    assert await holds_within(60, through)


async def test_two_pods_have_mutual_tls_and_each_rotation_of_it_without_a_lost_connection(
    cluster: Cluster, authority: FakeAuthority
) -> None:
    backend, frontend = await both(cluster, authority, protocol="tcp")
    async with traffic(frontend.port) as count:
        for _ in range(8):
            served, shown = authority.svid(BACKEND.path), authority.svid(FRONTEND.path)
            await asyncio.gather(backend.mount(served, authority), frontend.mount(shown, authority))
            await more(count)
            assert await presented(backend.port) == served.leaf.serial_number
            await logged(backend, shown.leaf.serial_number)
    assert await backend.count(f"{SERVER}.fail_verify_san") == await backend.count(f"{SERVER}.fail_verify_error") == 0


async def test_roots_change_by_way_of_both(cluster: Cluster, authority: FakeAuthority) -> None:
    backend, frontend = await both(cluster, authority, protocol="tcp")
    new = FakeAuthority(str(authority.trust_domain))
    async with traffic(frontend.port) as count:
        for issuers, roots in (
            ((authority, authority), (authority, new)),
            ((new, authority), (authority, new)),
            ((new, new), (authority, new)),
            ((new, new), (new,)),
        ):
            for pod, issuer, spiffe_id in zip((backend, frontend), issuers, (BACKEND, FRONTEND), strict=True):
                await pod.mount(issuer.svid(spiffe_id.path), *roots)
                await more(count)
    before = await backend.count(f"{SERVER}.fail_verify_error")
    await frontend.mount(authority.svid(FRONTEND.path), new)
    with pytest.raises(CallFailed):
        await tcp_echo(frontend.port)
    assert await backend.count(f"{SERVER}.fail_verify_error") > before
    await frontend.mount(new.svid(FRONTEND.path), new)
    await tcp_echo(frontend.port)


@pytest.mark.parametrize("fault", ["identity", "issuer", "expiry"])
@pytest.mark.parametrize("side", ["server", "client"])
async def test_what_is_wrong_at_one_end_is_refused_by_the_other_until_it_is_mended(
    cluster: Cluster, authority: FakeAuthority, side: str, fault: str
) -> None:
    backend, frontend = await both(cluster, authority)
    own, spiffe_id, judge = (
        (backend, BACKEND, (frontend, CLIENT)) if side == "server" else (frontend, FRONTEND, (backend, SERVER))
    )
    issuer = FakeAuthority(str(authority.trust_domain)) if fault == "issuer" else authority
    end = authority.now + timedelta(minutes=-1 if fault == "expiry" else 60)
    counter = f"{judge[1]}.{'fail_verify_san' if fault == 'identity' else 'fail_verify_error'}"
    await answered(frontend.port)
    assert await judge[0].count(counter) == 0
    await own.mount(issuer.svid((INTRUDER if fault == "identity" else spiffe_id).path, not_after=end), authority)
    await refused(frontend.port)
    assert await judge[0].count(counter) > 0
    await own.mount(authority.svid(spiffe_id.path), authority)
    await answered(frontend.port)


@pytest.mark.parametrize(
    ("name", "spoil", "words"),
    [
        pytest.param("key.pem", lambda pem, _: pem[:150], "Failed to load private key", id="half-a-key"),
        pytest.param("cert-chain.pem", lambda pem, _: pem[:300], "Failed to load certificate chain", id="half-a-chain"),
        pytest.param("root-cert.pem", lambda pem, _: pem[:300], "Failed to load trusted CA", id="half-a-root"),
        pytest.param("root-cert.pem", lambda _pem, _: b"", "Failed to reload certificates", id="no-root"),
        pytest.param("key.pem", lambda _, other: other.key_pem(), "Failed to load private key", id="another-key"),
    ],
)
async def test_what_can_not_be_used_is_never_served(
    cluster: Cluster,
    authority: FakeAuthority,
    name: str,
    spoil: Callable[[bytes, X509SVID], bytes],
    words: str,
) -> None:
    volume, good = Volume(cluster.folder / "backend"), authority.svid(BACKEND.path)
    volume.mount(good, authority)
    backend = await cluster.backend(volume)
    await backend.has(good, authority)
    volume.spoil(name, spoil((volume.folder / "identity" / name).read_bytes(), authority.svid(BACKEND.path)))
    await backend.said(words)
    await backend.has(good, authority)
    assert await presented(backend.port) == good.leaf.serial_number
    await backend.mount(authority.svid(BACKEND.path), authority)


async def test_an_envoy_that_starts_too_early_lets_nobody_in_and_takes_what_comes(
    cluster: Cluster, authority: FakeAuthority
) -> None:
    volume = Volume(cluster.folder / "backend", Layout.CREDENTIAL_BUNDLE)
    backend = await cluster.backend(volume, "--mode", "PERMISSIVE")
    with pytest.raises(ConnectionResetError):
        await presented(backend.port)
    volume.mount(authority.svid(BACKEND.path), authority)  # the links are made after the swap, and wake nobody
    await backend.mount(authority.svid(BACKEND.path), authority)
    frontend = Volume(cluster.folder / "frontend", Layout.TLS)
    frontend.mount(authority.svid(FRONTEND.path), authority)
    await answered((await cluster.frontend(frontend, backend)).port)


async def test_what_the_guide_says_makes_what_its_pod_starts_with(tmp_path: Path) -> None:
    guide = (Path(__file__).parents[2] / "docs/guides/certificate-files.md").read_text().split("## Without an agent")[1]
    (command,) = re.findall(r"^node-agent sidecar-config (.*?)^kubectl", guide, re.DOTALL | re.MULTILINE)
    words = [str(tmp_path) if word == "web-envoy" else word for word in shlex.split(command.replace("\\\n", " "))]
    app = typer.Typer(add_completion=False)
    app.command()(sidecar_config)
    assert CliRunner().invoke(app, words).exit_code == 0
    bootstrap = (tmp_path / "envoy.json").read_text()
    here = bootstrap.replace("/etc/envoy", str(tmp_path)).replace("/var/run/identity", str(tmp_path))
    (tmp_path / "here.json").write_text(here)
    await run([envoy_binary(), "--mode", "validate", "-c", tmp_path / "here.json"])
    pod = yaml.safe_load(re.findall(r"^```yaml\n(.*?)^```", guide, re.DOTALL | re.MULTILINE)[0])
    mounts = {mount["mountPath"] for mount in pod["spec"]["containers"][0]["volumeMounts"]}
    sources = pod["spec"]["volumes"][1]["projected"]["sources"]
    names = {sources[0]["podCertificate"]["credentialBundlePath"], sources[1]["clusterTrustBundle"]["path"]}
    told = "".join((tmp_path / name).read_text() for name in ("envoy.json", "certificate.json", "roots.json"))
    assert mounts == {"/etc/envoy", "/var/run/identity"}
    assert all(f'"/var/run/identity/{name}"' in told for name in names)
    assert '"path": "/etc/envoy/certificate.json"' in told


async def presented(port: int) -> int:
    """The serial number of the certificate that is presented to a new connection."""
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls_client())
    try:
        der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        return x509.load_der_x509_certificate(der).serial_number
    finally:
        writer.close()


async def refused(port: int) -> None:
    """Wait until calls do not get through: connections that are open go on for a moment."""

    async def stopped() -> bool:
        try:
            await http_get(port)
        except CallFailed as error:
            return "503" in str(error)
        return False

    assert await holds_within(60, stopped)


async def logged(pod: Pod, serial: int) -> None:
    """Wait until Envoy's access log tells of a peer with this serial number."""

    async def told() -> bool:
        return serial in {int(found, 16) for found in re.findall(r'"peer_serial":"([0-9a-f]+)"', pod.log)}

    assert await holds_within(60, told)
