"""A CA whose clock is five minutes off from the API server's leads, serves and renews as one whose clock is right."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from tests.cluster.certificate_requests import Pods, asked
from tests.cluster.client import Client
from tests.cluster.control_plane import ControlPlane
from tests.cluster.running_ca import Caller, RunningCA, account_id
from tests.cluster.sound import secrets, until_sound, versions
from tests.fakes.waiting import until
from tests.integration.daemons.foreign import certificates

SKEW = timedelta(minutes=5)
MARGIN = timedelta(minutes=2)


@pytest.mark.parametrize("ahead", [SKEW, -SKEW], ids=["ahead", "behind"])
async def test_five_minutes_keep_nobody_from_a_certificate_that_is_valid(
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
            settings={"lease": "10s", "sign_requests": True},
            tokens={"verification": "offline"},
            # Peers whose clock is right find a certificate of a clock that is ahead valid only if it is backdated.
            signing={"backdate": "10m"},
            **more,
        )

    pods = Pods(control_plane, admin, namespace)
    await pods.made(1)
    async with ca("skewed", *skewed) as wrong:
        await wrong.leads()
        found = await until_sound(admin, namespace, namespace)
        caller = await Caller.of(wrong, admin, namespace)
        for _ in range(2):  # a token that is seconds old, of ten minutes at most
            token = await admin.service_account_token(
                namespace, "web", audiences=["istio-ca"], expiration_seconds=600, pod=pods.pods[0]
            )
            given, identity = await caller.identity(token)
            assert given == account_id(namespace, "web")
        leaf = certificates(identity.chain.decode())[0]
        assert leaf.not_valid_before_utc < datetime.now(UTC) < leaf.not_valid_after_utc
        assert abs(leaf.not_valid_before_utc + timedelta(minutes=10) - datetime.now(UTC) - ahead) < MARGIN
        assert (await caller.identity(shown=identity))[0] == given
        await wrong.leads()
        async with pods.kubelet() as kubelet:
            request = pods.request(pods.pods[0], ec.generate_private_key(ec.SECP256R1()))
            name = await asked(kubelet, pods.path, request)
        if ahead > timedelta():  # it might begin in the kubelet's future: a clock is to be mended
            waits = await wrong.process.says("a request waits")
            assert "5 minutes ahead of the API server's" in str(waits["reason"])
        else:
            await pods.answer(name)
    async with ca("right") as right:
        await right.leads()
        status = (await pods.answer(name))["status"]
        assert [each["type"] for each in status["conditions"]] == ["Issued"]
        await until(lambda: right.metric("istio_auth_ca_secrets_managed") >= len(found))
        await until(lambda: right.metric("istio_auth_ca_secrets_waiting") == 0)
        assert versions(await secrets(admin, namespace)) == versions(found)
