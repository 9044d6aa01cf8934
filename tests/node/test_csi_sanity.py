"""The CSI project's own conformance tests, Identity and Node, against the plugin."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

from tests.node.build import node_programs
from tests.node.installation import Installed
from tests.node.machine import KUBELET

# It begins with a volume that a controller makes, and inline volumes have none.
WITH_A_CONTROLLER = "NodeUnpublishVolume should remove target path"


async def test_the_plugin_conforms(installed: Installed, tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    process = await asyncio.create_subprocess_exec(
        node_programs().csi_sanity,
        f"--csi.endpoint=unix://{KUBELET}/plugins/istio-auth/csi.sock",
        f"--csi.mountdir={KUBELET}/sanity",
        f"--csi.stagingdir={KUBELET}/staging",
        "--ginkgo.no-color",
        "--ginkgo.focus=Identity Service|Node Service",
        f"--ginkgo.skip={WITH_A_CONTROLLER}",
        f"--ginkgo.junit-report={report}",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await process.communicate()
    assert process.returncode == 0, out.decode()
    # What it leaves out by itself is what the plugin does not offer: staging, expansion, statistics, health.
    assert set(re.findall(r'name="\[It\] ([^"]*)"[^>]*status="passed"', report.read_text())) == {
        "Identity Service GetPluginCapabilities should return appropriate capabilities",
        "Identity Service GetPluginInfo should return appropriate information",
        "Identity Service Probe should return appropriate information",
        "Node Service NodeGetCapabilities should return appropriate capabilities",
        "Node Service NodeGetInfo should return appropriate values",
        "Node Service NodePublishVolume should fail when no target path is provided",
        "Node Service NodePublishVolume should fail when no volume capability is provided",
        "Node Service NodePublishVolume should fail when no volume id is provided",
        "Node Service NodeUnpublishVolume should fail when no target path is provided",
        "Node Service NodeUnpublishVolume should fail when no volume id is provided",
    }
