"""An istiod with a plugged CA: an intermediate signs, and the root that is pinned has never met istiod."""

from __future__ import annotations

from pathlib import Path

import pytest

from istio_auth.pem import write_certificates, write_private_key
from istio_auth.system_clock import SystemClock
from tests.cluster.control_plane import ControlPlane
from tests.cluster.istio.agent import IstiodAgent
from tests.cluster.istio.istiod import Istiod, Mesh
from tests.cluster.istio.test_istiod import proven, workload
from tests.fakes.authority import FakeAuthority


@pytest.mark.cluster
async def test_a_chain_of_several_certificates_is_served_whole(istio_plane: ControlPlane, tmp_path: Path) -> None:
    now = SystemClock().now()
    root = FakeAuthority("cluster.local", now=now)
    signer = FakeAuthority("cluster.local", parent=root, now=now)
    folder, run = tmp_path / "cacerts", tmp_path / "run"
    folder.mkdir()
    run.mkdir()
    (folder / "ca-key.pem").write_bytes(write_private_key(signer.key))
    for name, held in (("ca-cert", signer.intermediates), ("cert-chain", signer.intermediates), ("root-cert", ())):
        (folder / f"{name}.pem").write_bytes(write_certificates(held or [root.root]))
    async with istio_plane.admin() as admin:
        istiod = await Istiod.on(istio_plane, admin, {"ROOT_CA_DIR": folder})
        mesh = await Mesh.on(istio_plane, admin, istiod)
        web = await workload(mesh, "web")
        async with IstiodAgent(mesh, run, [web]) as agent:
            svid = await agent.svid()
            assert len(svid.chain) == 2
            assert proven(svid, await mesh.roots()) == web
