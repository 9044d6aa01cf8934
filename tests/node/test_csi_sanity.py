"""The CSI project's own conformance tests."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.node.build import node_programs
from tests.node.installation import Installed
from tests.node.machine import KUBELET


async def test_the_plugin_conforms(installed: Installed, tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        node_programs().csi_sanity,
        f"--csi.endpoint=unix://{KUBELET}/plugins/istio-auth/csi.sock",
        f"--csi.mountdir={KUBELET}/sanity",
        f"--csi.stagingdir={KUBELET}/staging",
        "--ginkgo.v",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await process.communicate()
    print(out.decode())
    assert process.returncode == 0
