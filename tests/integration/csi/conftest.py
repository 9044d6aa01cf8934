"""An agent that is a CSI node plugin, a CA that reviews pods' tokens, and a kubelet."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from istio_auth.spiffe_id import SpiffeID
from node_agent.csi.settings import CSISettings
from tests.fakes.ca import CAServer
from tests.fakes.certificate_client import FakeCA
from tests.fakes.clock import FakeClock
from tests.fakes.kubelet import Kubelet
from tests.fakes.mounts import LinkMounts
from tests.fakes.running_agent import RunningAgent

TOKEN = "token-of-the-pods-web"
WEB = SpiffeID.parse("spiffe://cluster.local/ns/shop/sa/web")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short path, for sockets far below it."""
    path = Path(tempfile.mkdtemp(prefix="csi-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
async def server(clock: FakeClock) -> AsyncIterator[CAServer]:
    async with CAServer(FakeCA(clock), node_service=False) as server:
        server.ca.pod_tokens[TOKEN] = WEB
        yield server


@pytest.fixture
async def kubelet(folder: Path, clock: FakeClock) -> AsyncIterator[Kubelet]:
    async with Kubelet(folder / "kubelet", clock.now() + timedelta(hours=1)) as kubelet:
        yield kubelet


@pytest.fixture
def mounts() -> LinkMounts:
    return LinkMounts()


@pytest.fixture
async def agent(
    server: CAServer, folder: Path, clock: FakeClock, kubelet: Kubelet, mounts: LinkMounts
) -> AsyncIterator[RunningAgent]:
    (folder / "run").mkdir()  # nobody waits for this loop yet
    settings = CSISettings(
        endpoint=kubelet.endpoint, kubelet_folder=kubelet.folder, publish_timeout=timedelta(seconds=60)
    )
    running = RunningAgent(server, folder / "run", clock, mounts=mounts, csi=settings, allow_disk_cache=True)
    async with running as agent:
        yield agent
