"""Many service accounts at once, and a namespace that goes away with all of them."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.cluster.client import Client
from tests.cluster.control_plane import ControlPlane
from tests.cluster.running_ca import RunningCA
from tests.cluster.sound import secrets, until_sound, versions
from tests.cluster.waiting import eventually, vanishes
from tests.fakes.waiting import until

WRITTEN = "istio_auth_ca_secrets_written_total"


async def test_a_namespace_that_is_deleted_while_it_is_filled_is_let_go(
    controllers: None, control_plane: ControlPlane, admin: Client, namespace: str, tmp_path: Path
) -> None:
    doomed = f"{namespace}-doomed"
    await admin.create_namespace(doomed)
    await asyncio.gather(*(admin.create_service_account(doomed, f"web-{number}") for number in range(60)))
    async with RunningCA(control_plane.kubeconfig, tmp_path / "ca", namespace, managed=[namespace, doomed]) as ca:

        async def half_full() -> bool:
            return len(await secrets(admin, doomed)) >= 10

        await eventually(half_full)
        await admin.delete(f"/api/v1/namespaces/{doomed}")
        await vanishes(admin, f"/api/v1/namespaces/{doomed}")
        await admin.create_service_account(namespace, "other")
        await until_sound(admin, namespace, namespace)
        await until(lambda: ca.metric("istio_auth_ca_secrets_failing") == 0)
        await until(lambda: ca.metric("istio_auth_ca_secrets_waiting") == 0)
        assert [line for line in ca.process.lines() if line["level"] == "error"] == []


async def test_five_hundred_service_accounts_at_once_get_one_secret_each_by_one_write_each(
    control_plane: ControlPlane, admin: Client, namespace: str, tmp_path: Path
) -> None:
    async with RunningCA(control_plane.kubeconfig, tmp_path / "ca", namespace, managed=[namespace]) as ca:
        await until_sound(admin, namespace, namespace)
        await asyncio.gather(*(admin.create_service_account(namespace, f"web-{number}") for number in range(500)))
        found = await until_sound(admin, namespace, namespace, within=240)
        assert len(found) >= 500
        created = f'{WRITTEN}{{kind="create",reason="absent"}}'
        await until(lambda: ca.metric(created) >= len(found))  # the last answer may be on its way
        await until(lambda: ca.metric("istio_auth_ca_secrets_waiting") == 0)
        assert ca.metric(created) == len(found)
        assert versions(await secrets(admin, namespace)) == versions(found)
