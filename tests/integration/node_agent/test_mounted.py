"""An agent that serves a mounted certificate and asks no CA, as the program that runs in a pod beside a sidecar."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from istio_auth import write_svid
from istio_auth.bundle import BundleSet
from istio_auth.daemon.lifecycle import Daemon
from istio_auth.daemon.notify import Notifier
from istio_auth.host_port import HostPort
from istio_auth.pem import write_der
from istio_auth.sources.svid_files import SVIDLayout
from istio_auth.x509_source import X509Context
from node_agent.admin.commands import asked
from node_agent.config import Config, SocketSettings
from node_agent.mounted import MountedAgent
from tests.fakes.authority import FakeAuthority
from tests.fakes.clock import FakeClock
from tests.fakes.sds_client import SDSStream
from tests.fakes.unix_sockets import is_answered
from tests.fakes.waiting import until
from tests.integration.node_agent.test_workload_api import at, names, state

WEB = "/ns/shop/sa/web"


class Pod:
    """A folder that is mounted, and an agent on it."""

    def __init__(self, folder: Path, authority: FakeAuthority, *, layout: SVIDLayout = SVIDLayout.ISTIO) -> None:
        self.folder, self.authority, self.layout = folder / "certs", authority, layout
        self.clock = FakeClock(datetime.now(UTC))
        self.socket = folder / "agent.sock"
        self.config = Config(
            mounted=self.folder,
            run_folder=folder,
            metrics_listen=HostPort("127.0.0.1", 0),
            socket=(SocketSettings(self.socket, "main", "0600"),),
        )
        self.agent: MountedAgent

    def mount(self, authority: FakeAuthority | None = None, path: str = WEB) -> None:
        """Put a new certificate and its roots there, as Kubernetes does."""
        authority = authority or self.authority
        context = X509Context((authority.svid(path),), BundleSet((authority.bundle(),)))
        write_svid(self.folder, context, layout=self.layout)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[MountedAgent]:
        self.agent = MountedAgent(self.config, self.folder, self.clock)
        self.daemon, serving = Daemon(Notifier({}, 0), lambda: None), asyncio.Event()

        async def main(daemon: Daemon) -> None:
            async with self.agent.serving(daemon):
                daemon.ready()
                serving.set()
                await daemon.until_stop()

        task, waiting = asyncio.create_task(self.daemon.live(main)), asyncio.create_task(serving.wait())
        await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
        try:
            if serving.is_set():
                yield self.agent
        finally:
            waiting.cancel()
            self.daemon.stop("the test")
            await task


@pytest.fixture
def pod(tmp_path: Path, authority: FakeAuthority) -> Pod:
    return Pod(tmp_path, authority)


@pytest.mark.parametrize(
    "layout", [SVIDLayout.ISTIO, SVIDLayout.KUBERNETES_TLS, SVIDLayout.CREDENTIAL_BUNDLE], ids=lambda one: one.chain
)
async def test_a_sidecar_and_an_application_have_what_is_mounted(
    tmp_path: Path, authority: FakeAuthority, layout: SVIDLayout
) -> None:
    pod = Pod(tmp_path, authority, layout=layout)
    pod.mount()
    async with pod.running(), SDSStream(pod.socket, "default", "ROOTCA") as stream, at(pod.socket) as workload:
        await stream.receive()
        assert str(stream.svid().id) == f"spiffe://cluster.local{WEB}"
        assert stream.roots() == authority.bundle().x509_authorities
        assert names(await state(workload.svids())) == [f"spiffe://cluster.local{WEB}"]
        assert not pod.daemon.readiness.problems()


async def test_roots_in_a_volume_of_their_own_are_served(pod: Pod) -> None:
    pod.layout = SVIDLayout.CREDENTIAL_BUNDLE
    pod.mount()
    roots = pod.folder.parent / "anchors.pem"
    roots.write_bytes(pod.authority.bundle().to_pem())
    (pod.folder / "trust-bundle.pem").unlink()
    pod.config = replace(pod.config, mounted_roots=roots)
    async with pod.running(), SDSStream(pod.socket, "ROOTCA") as stream:
        await stream.receive()
        assert stream.roots() == pod.authority.bundle().x509_authorities


async def told(pod: Pod) -> Any:
    """What `node-agent status` is answered."""
    return await asyncio.to_thread(asked, pod.config.admin_at, "/status")


def vanish(pod: Pod) -> None:
    pod.folder.rename(pod.folder.with_name("away"))


def damage(pod: Pod) -> None:
    content = pod.folder / "cert-chain.pem"
    pem = content.read_bytes()
    content.unlink()
    content.write_bytes(pem[: len(pem) // 2])


def take_the_key_of_another(pod: Pod) -> None:
    key = pod.folder / "key.pem"
    key.unlink()
    key.write_bytes(pod.authority.svid(WEB).key_pem())
    key.chmod(0o600)


def loop(pod: Pod) -> None:
    roots = pod.folder / "root-cert.pem"
    roots.unlink()
    roots.symlink_to("root-cert.pem")


def overflow(pod: Pod) -> None:
    roots = pod.folder / "root-cert.pem"
    roots.unlink()
    with roots.open("wb") as file:
        file.truncate(1 << 30)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (vanish, "No such file"),
        (damage, "cert-chain.pem"),
        (take_the_key_of_another, "key"),
        (loop, "root-cert.pem"),
        (overflow, "root-cert.pem"),
    ],
)
async def test_what_vanishes_or_breaks_is_served_on_and_told_until_it_is_mended(
    pod: Pod, change: Callable[[Pod], None], words: str
) -> None:
    pod.mount()
    async with pod.running() as agent, at(pod.socket) as workload:
        first = next(iter(agent.cache.snapshot.held.values())).svid
        change(pod)
        await until(lambda: words in pod.daemon.readiness.remarks().get("mounted", ""))
        agent.look()
        assert next(iter(agent.cache.snapshot.held.values())).svid is first
        assert names(await state(workload.svids())) == [str(first.id)]
        assert not pod.daemon.readiness.problems()
        status = await told(pod)
        assert words in status["agent"]["trouble"]
        assert words in status["workloads"][0]["trouble"]
        shutil.rmtree(pod.folder, ignore_errors=True)
        pod.mount()
        await until(lambda: next(iter(agent.cache.snapshot.held.values())).svid is not first)
        assert agent.delay is None
        assert (await told(pod))["agent"]["trouble"] is None


async def test_both_follow_what_is_mounted_next(pod: Pod) -> None:
    pod.mount()
    async with pod.running(), SDSStream(pod.socket, "default", "ROOTCA") as stream, at(pod.socket) as workload:
        await stream.receive()
        call = workload.svids()
        first = await state(call)
        new = FakeAuthority(now=pod.authority.now)
        pod.mount(new)
        while stream.roots() != new.bundle().x509_authorities:
            await stream.receive()
        second = await state(call)
        while second.svids[0].x509_svid == first.svids[0].x509_svid:
            second = await state(call)
        assert write_der(stream.svid().leaf) in second.svids[0].x509_svid


async def test_what_is_mounted_later_is_served_then(pod: Pod) -> None:
    async with pod.running(), at(pod.socket) as workload, SDSStream(pod.socket, "default") as stream:
        assert (await workload.refusal("FetchX509SVID"))[0] == "UNAVAILABLE"
        assert "mounted" in pod.daemon.readiness.problems()
        pod.mount()
        await stream.receive()
        assert names(await state(workload.svids())) == [f"spiffe://cluster.local{WEB}"]
        assert not pod.daemon.readiness.problems()


async def test_how_long_it_lasts_is_measured(pod: Pod) -> None:
    pod.mount()
    async with pod.running() as agent:
        left = agent.metrics.registry.get_sample_value("istio_auth_agent_seconds_until_first_lapse")
        assert left == (next(iter(agent.cache.snapshot.held.values())).svid.not_after - pod.clock.now()).total_seconds()


async def test_what_has_ended_is_served_no_more_until_another_is_mounted(pod: Pod) -> None:
    pod.mount()
    async with pod.running() as agent, at(pod.socket) as workload:
        call = workload.svids()
        await state(call)
        pod.clock.advance(timedelta(hours=3))
        agent.look()
        assert not agent.cache.snapshot.held
        assert "ended" in pod.daemon.readiness.problems()["mounted"]
        pod.authority = FakeAuthority(now=pod.clock.now())
        pod.mount()
        await until(lambda: not agent.trouble)
        await state(call)


async def test_a_certificate_of_another_trust_domain_is_refused_with_the_setting_that_is_meant(
    pod: Pod, foreign_authority: FakeAuthority
) -> None:
    pod.mount(foreign_authority)
    async with pod.running() as agent:
        found = foreign_authority.trust_domain
        assert agent.trouble is not None
        assert f"set trust_domain to {found}" in agent.trouble
        assert not agent.cache.snapshot.held
        pod.mount()
        await until(lambda: not agent.trouble)
        assert len(agent.cache.snapshot.held) == 1


async def test_who_asks_an_agent_about_no_process_is_told_so(pod: Pod) -> None:
    async with (
        pod.running(),
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(pod.config.admin_at))) as asking,
    ):
        for word, status in ((str(os.getpid()), 200), ("0", 400), ("-1", 400), (str(10**19), 400), ("x", 400)):
            async with asking.get("http://agent/explain", params={"pid": word}) as answer:
                assert answer.status == status


@pytest.mark.root
async def test_callers_from_other_containers_of_the_pod_are_served_though_their_processes_are_out_of_sight(
    pod: Pod,
) -> None:
    pod.mount()
    alone = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")  # as the containers of a pod are
    with tempfile.TemporaryDirectory(prefix="pod-") as name:
        program = await asyncio.create_subprocess_exec(
            *alone, *_command(), env=_environment(pod, name), stderr=asyncio.subprocess.DEVNULL
        )
        try:
            socket = Path(name) / "agent.sock"
            await until(lambda: is_answered(socket))
            async with at(socket) as workload, SDSStream(socket, "default") as stream:
                assert names(await state(workload.svids())) == [f"spiffe://cluster.local{WEB}"]
                await stream.receive()
                assert str(stream.svid().id) == f"spiffe://cluster.local{WEB}"
        finally:
            program.kill()
            await program.wait()


async def test_the_program_runs_so_and_tells_its_status(pod: Pod, authority: FakeAuthority) -> None:
    pod.mount()
    with tempfile.TemporaryDirectory(prefix="pod-") as name:  # pytest's own folders are too long for Unix sockets
        program = await asyncio.create_subprocess_exec(
            *_command(), env=_environment(pod, name), stderr=asyncio.subprocess.DEVNULL
        )
        try:
            await until(lambda: is_answered(Path(name) / "agent.sock"))
            async with at(Path(name) / "agent.sock") as workload:
                assert names(await state(workload.svids())) == [f"spiffe://cluster.local{WEB}"]
            status = await asyncio.create_subprocess_exec(
                *_command("status", "--admin-socket", f"{name}/admin.sock"), stdout=asyncio.subprocess.PIPE
            )
            out, _ = await status.communicate()
            assert f"Workload spiffe://cluster.local{WEB}" in out.decode()
            assert "the certificate is mounted" in out.decode()
        finally:
            program.terminate()
            assert await program.wait() == 0


def _environment(pod: Pod, run_folder: str) -> dict[str, str]:
    return os.environ | {
        "ISTIO_AUTH_AGENT__MOUNTED": str(pod.folder),
        "ISTIO_AUTH_AGENT__RUN_FOLDER": run_folder,
        "ISTIO_AUTH_AGENT__METRICS_LISTEN": "127.0.0.1:0",
    }


def _command(*words: str) -> list[str]:
    return [sys.executable, "-c", "from node_agent.cli import main; main()", *words]
