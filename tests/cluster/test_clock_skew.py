"""A CA whose clock is five minutes off from the API server's leads, serves and renews as one whose clock is right."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.cluster.client import Client
from tests.cluster.control_plane import ControlPlane
from tests.cluster.running_ca import Caller, RunningCA, account_id
from tests.cluster.sound import secrets, until_sound, versions
from tests.fakes.waiting import until
from tests.integration.daemons.foreign import certificates

SKEW = timedelta(minutes=5)
MARGIN = timedelta(minutes=2)


@pytest.mark.parametrize("ahead", [SKEW, -SKEW], ids=["ahead", "behind"])
async def test_five_minutes_are_noticed_by_nobody(
    control_plane: ControlPlane, admin: Client, namespace: str, tmp_path: Path, ahead: timedelta
) -> None:
    skewed = [sys.executable, "-m", "tests.fakes.skewed_ca", f"{ahead.total_seconds():.0f}"]

    def ca(name: str, *program: str) -> RunningCA:
        more = {"program": program} if program else {}
        return RunningCA(
            control_plane.kubeconfig,
            tmp_path / name,
            namespace,
            managed=[namespace],
            settings={"lease": "2s"},
            tokens={"verification": "offline"},
            # Peers whose clock is right find a certificate of a clock that is ahead valid only if it is backdated.
            signing={"backdate": "10m"},
            **more,
        )

    await admin.create_service_account(namespace, "web")
    pod = await admin.create_pod(namespace, "web-1", service_account="web")
    async with ca("skewed", *skewed) as wrong:
        await wrong.leads()
        found = await until_sound(admin, namespace, namespace)
        caller = await Caller.of(wrong, admin, namespace)
        for _ in range(2):  # a token that is seconds old, of ten minutes at most
            token = await admin.service_account_token(
                namespace, "web", audiences=["istio-ca"], expiration_seconds=600, pod=pod
            )
            given, identity = await caller.identity(token)
            assert given == account_id(namespace, "web")
        leaf = certificates(identity.chain.decode())[0]
        assert leaf.not_valid_before_utc < datetime.now(UTC) < leaf.not_valid_after_utc
        assert abs(leaf.not_valid_before_utc + timedelta(minutes=10) - datetime.now(UTC) - ahead) < MARGIN
        assert (await caller.identity(shown=identity))[0] == given
        assert wrong.metric("istio_auth_ca_leader") == 1
    async with ca("right") as right:
        await right.leads()
        await until(lambda: right.metric("istio_auth_ca_secrets_managed") >= len(found))
        await until(lambda: right.metric("istio_auth_ca_secrets_waiting") == 0)
        assert versions(await secrets(admin, namespace)) == versions(found)
