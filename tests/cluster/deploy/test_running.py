"""The CA under the account that its manifests give it: whatever it does there, it is allowed to."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster.client import Client
from tests.cluster.control_plane import ControlPlane
from tests.cluster.manifests import Installation, ca_account, environment, rendered
from tests.cluster.running_ca import Caller, RunningCA, account_id
from tests.cluster.waiting import appears
from tests.fakes.processes import program


@pytest.mark.parametrize(
    "components", [(), ("offline-tokens",), ("without-secrets",)], ids=["base", "offline", "without-secrets"]
)
async def test_it_serves_with_the_rights_and_the_environment_of_its_manifests(
    control_plane: ControlPlane, admin: Client, namespace: str, tmp_path: Path, components: tuple[str, ...]
) -> None:
    installation = Installation(namespace=namespace, components=components, signer=f"{namespace}.test/workload")
    variables = environment(await rendered(control_plane, installation))
    ca = RunningCA(
        await ca_account(control_plane, tmp_path / "kubeconfig", installation),
        tmp_path / "ca",
        namespace,
        managed=[namespace],
        settings={"sign_requests": True},
        program=("env", *(f"{name}={value}" for name, value in variables.items()), program("istio-ca")),
    )
    await admin.create_service_account(namespace, "web")
    token = await admin.service_account_token(namespace, "web", audiences=["istio-ca"])
    async with ca:
        await ca.leads()
        caller = await Caller.of(ca, admin, namespace)
        assert (await caller.identity(token))[0] == account_id(namespace, "web")
        await appears(admin, f"/apis/certificates.k8s.io/v1/clustertrustbundles/{namespace}.test:workload:roots")
        secret = f"/api/v1/namespaces/{namespace}/secrets/istio.web"
        if "without-secrets" in components:
            assert await admin.find(secret) is None
        else:
            await appears(admin, secret)
    assert "forbidden" not in ca.process.text()
