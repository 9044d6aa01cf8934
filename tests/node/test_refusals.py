"""Pods that may not have what they ask for: the kubelet shows our reason; they start once the one fault is mended."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.node.installation import Installed
from tests.node.pods import DRIVER, MOUNTED, Pod, Pods, PodSpec

FILES = PodSpec(attributes={"form": "files"})


@pytest.mark.parametrize(
    ("faulty", "reason"),
    [
        (
            replace(FILES, attributes={"form": "files", "color": "red"}),
            "attribute 'color' is unknown for form 'files'",
        ),
        (replace(FILES, read_only=False), "the volume must be read-only: set readOnly: true"),
        (replace(FILES, attributes={"form": "files", "keyMode": "0640"}), "set fsGroup in the pod"),
        (replace(FILES, attributes={"form": "files", "ttl": "soon"}), "attribute ttl: 'soon' is no duration"),
    ],
    ids=["unknown attribute", "writable", "group without fsGroup", "lifetime"],
)
async def test_a_pod_with_one_fault_is_told_which_and_starts_without_it(
    pods: Pods, installed: Installed, faulty: PodSpec, reason: str
) -> None:
    pod = await pods.create(faulty)
    print(await pod.is_told(reason))
    assert not pod.is_mounted()
    await pod.delete()
    mended = await pods.start(FILES)
    await mended.told("who", MOUNTED)


async def refused(pods: Pods, words: str) -> Pod:
    """A pod that is refused so; the first ones may be let in, for what was changed is heard of a little later."""
    for number in range(10):
        pod = await pods.create(PodSpec(f"web-{number}"))
        if await pod.is_refused(words):
            return pod
        await pod.delete()
    raise AssertionError(f"ten pods were let in: {words}")


async def test_a_pod_whose_token_is_for_nobody_we_know_starts_once_the_driver_asks_for_the_right_one(
    pods: Pods, installed: Installed
) -> None:
    driver = f"/apis/storage.k8s.io/v1/csidrivers/{DRIVER}"
    right = (await pods.admin.get(driver))["spec"]["tokenRequests"]
    await pods.admin.patch(driver, {"spec": {"tokenRequests": [{"audience": "somebody-else"}]}})
    try:
        pod = await refused(
            pods, "no token for the audience 'istio-ca' came with the pod: see tokenRequests of the CSIDriver"
        )
    finally:
        await pods.admin.patch(driver, {"spec": {"tokenRequests": right}})
    await pod.runs()


async def test_a_pod_whose_token_the_ca_can_not_check_starts_once_it_can(pods: Pods, installed: Installed) -> None:
    bindings = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings"
    found = [each for each in await pods.admin.list(bindings) if each["metadata"]["name"].startswith("istio-ca")]
    for each in found:
        await pods.admin.delete(f"{bindings}/{each['metadata']['name']}")
    try:
        pod = await refused(pods, "there is no certificate for the pod")
    finally:
        for each in found:
            await pods.admin.create(bindings, {**each, "metadata": {"name": each["metadata"]["name"]}})
    await pod.runs()
