"""Somebody keeps changing back what the CA writes: it gives way, and says so where operators look."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import pytest

from tests.cluster.client import JSON, Client
from tests.cluster.control_plane import ControlPlane
from tests.cluster.running_ca import RunningCA
from tests.cluster.sound import until_sound
from tests.cluster.waiting import eventually

REPAIRS = 2  # the third change is one too many
THEIRS: Mapping[str, JSON] = {
    "secrets/istio.web": {"data": {"root-cert.pem": "QUFB"}},
    "configmaps/istio-ca-root-cert": {"data": {"root-cert.pem": "theirs"}},
}


@pytest.mark.parametrize("name", THEIRS)
async def test_a_fight_is_not_fought_and_the_status_is_degraded(
    control_plane: ControlPlane, admin: Client, namespace: str, tmp_path: Path, name: str
) -> None:
    path, theirs = f"/api/v1/namespaces/{namespace}/{name}", THEIRS[name]
    async with RunningCA(control_plane.kubeconfig, tmp_path / "ca", namespace, managed=[namespace]) as ca:
        await admin.create_service_account(namespace, "web")
        await until_sound(admin, namespace, namespace)
        ours = (await eventually(lambda: admin.find(path)))["data"]
        for _ in range(REPAIRS):
            await admin.patch(path, theirs)
            await eventually(holds(admin, path, ours))
        assert ca.metric("istio_auth_ca_degraded") == 0
        assert ca.readiness() == ["ok"]
        await admin.patch(path, theirs)
        assert await eventually(is_degraded(ca), within=20)
        first, remark = ca.readiness()
        assert first == "ok"
        assert remark.startswith("degraded: leader's work: ")
        assert namespace in remark
        assert (await admin.get(path))["data"] == {**ours, **theirs["data"]}


def holds(admin: Client, path: str, data: JSON) -> Callable[[], Awaitable[bool]]:
    async def look() -> bool:
        return bool((await admin.get(path))["data"] == data)

    return look


def is_degraded(ca: RunningCA) -> Callable[[], Awaitable[bool]]:
    async def look() -> bool:
        return ca.metric("istio_auth_ca_degraded") == 1

    return look
