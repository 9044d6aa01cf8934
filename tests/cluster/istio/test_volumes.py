"""Pods' CSI volumes filled from a real istiod, with each pod's own token and no right to ask for others."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from istio_auth.bundle import TrustBundle
from istio_auth.errors import NotReady
from istio_auth.host_port import HostPort
from istio_auth.spiffe_id import TrustDomain
from istio_auth.svid import X509SVID
from istio_auth.system_clock import SystemClock
from node_agent.ca_client.istio_ca import IstioCASettings
from node_agent.csi.settings import CSISettings
from tests.cluster.istio.istiod import Mesh
from tests.fakes.ca import CAServer
from tests.fakes.clock import FakeClock
from tests.fakes.kubelet import Kubelet, Pod
from tests.fakes.mounts import LinkMounts
from tests.fakes.running_agent import RunningAgent
from tests.fakes.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short path, for sockets far below it."""
    path = Path(tempfile.mkdtemp(prefix="csi-"))
    yield path
    shutil.rmtree(path)


async def test_a_pods_volume_is_filled_and_renewed_with_the_pods_own_token(mesh: Mesh, folder: Path) -> None:
    web = await mesh.account("web")
    pod = await mesh.pod("web")
    attributes = {"form": "files", "ttl": "20s"}
    volume = Pod(pod["metadata"]["name"], mesh.namespace, "web", attributes)
    async with (
        Kubelet(folder / "kubelet", SystemClock().now() + timedelta(hours=1)) as kubelet,
        agent_of(mesh, folder, kubelet, await mesh.roots()) as agent,
    ):
        with pytest.raises(NotReady, match=r"there is no certificate for the pod: .*request authenticate failure"):
            await kubelet.publish(volume, await mesh.pod_token(pod, "somebody-else"))
        assert list(kubelet.pods()) == []
        await kubelet.publish(volume, await mesh.pod_token(pod))
        first = held(kubelet.target(volume))
        assert str(first.id) == web
        assert (kubelet.target(volume) / "root-cert.pem").read_text() == await mesh.roots()
        assert not agent.daemon.readiness.problems()
        await until(lambda: renewed(kubelet.target(volume), first))


def agent_of(mesh: Mesh, folder: Path, kubelet: Kubelet, roots: str) -> RunningAgent:
    """An agent that serves volumes alone."""
    (folder / "run").mkdir()
    bundle = TrustBundle.from_pem(TrustDomain("cluster.local"), roots.encode())
    root = SimpleNamespace(bundle=lambda: bundle)
    istiod = SimpleNamespace(address=HostPort("127.0.0.1", mesh.istiod.port), ca=SimpleNamespace(root=root))
    return RunningAgent(
        cast("CAServer", istiod),
        folder / "run",
        cast("FakeClock", SystemClock()),
        mounts=LinkMounts(),
        istio_ca=IstioCASettings(server_name="istiod.istio-system.svc"),
        csi=CSISettings(endpoint=kubelet.endpoint, kubelet_folder=kubelet.folder),
        allow_disk_cache=True,
    )


def renewed(target: Path, first: X509SVID) -> bool:
    """Whether the pod finds another one."""
    try:
        return held(target).key_pem() != first.key_pem()
    except FileNotFoundError:  # it was swapped while we read
        return False


def held(target: Path) -> X509SVID:
    """What the pod finds in its volume, which is swapped whole."""
    data = (target / "..data").resolve()
    return X509SVID.parse((data / "cert-chain.pem").read_bytes(), (data / "key.pem").read_bytes())
