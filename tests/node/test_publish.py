"""Pods with the volume of the driver, started by a real kubelet: what they find there, and as whom they may read it."""

from __future__ import annotations

from tests.node.installation import Installed
from tests.node.pods import MOUNTED, Pods, PodSpec


async def test_a_pod_reads_its_certificate_from_files(pods: Pods, installed: Installed) -> None:
    pod = await pods.start(PodSpec(attributes={"form": "files"}, service_account="web"))
    print(await pod.run("ls", "-laR", MOUNTED))
    print(await installed.volume_of(f"{pods.namespace}/web"))
    await pod.delete()
