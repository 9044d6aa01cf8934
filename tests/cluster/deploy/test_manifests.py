"""The manifests of deploy/kubernetes: the API server takes them, and they start the program as it must be."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import yaml

from ca.config import FILE_NAME, Config
from istio_auth.daemon.folders import Folders
from istio_auth.daemon.lifecycle import STOP_WITHIN
from istio_auth.host_port import HostPort
from tests.cluster.client import JSON, Client
from tests.cluster.control_plane import ControlPlane
from tests.cluster.manifests import (
    BASE,
    KUBERNETES,
    Installation,
    apply,
    container,
    environment,
    kubectl,
    of_kind,
    pod_spec,
    rendered,
    volumes_by_path,
)
from tests.cluster.waiting import answers, vanishes
from tests.fakes.processes import program

HIGH_AVAILABILITY = Installation("overlays/high-availability")
WITH_AGENTS = Installation(components=("node-agent",))
WITH_SOCKETS = Installation(components=("node-agent", "shared-socket"))
INCLUDED = {"node-agent"}  # by the component of that name
ALL_COMPONENTS = ("offline-tokens", "without-secrets")
INSTALLATIONS = {
    "base": BASE,
    "three": HIGH_AVAILABILITY,
    "offline": Installation(components=("offline-tokens",)),
    "no-secrets": Installation(components=("without-secrets",)),
    "agents": WITH_AGENTS,
    "sockets": WITH_SOCKETS,
    "all": replace(HIGH_AVAILABILITY, components=(*ALL_COMPONENTS, "node-agent", "shared-socket")),
}
every_installation = pytest.mark.parametrize("installation", INSTALLATIONS.values(), ids=INSTALLATIONS)


async def effective(objects: Sequence[JSON], folder: Path) -> dict[str, str]:
    """What the program in the pod says that it would run with; `folder` stands for the one of its settings."""
    for name, text in of_kind(objects, "ConfigMap", "istio-ca")["data"].items():
        (folder / name).write_text(text)
    process = await asyncio.create_subprocess_exec(
        program("istio-ca"),
        *("check-config", "--output", "json", "--config", folder / FILE_NAME),
        env={"PATH": os.environ["PATH"], **environment(objects)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return {row["name"]: row["value"] for row in json.loads(out)["settings"]}


def test_every_overlay_and_component_is_tried() -> None:
    found = {str(path.parent.relative_to(KUBERNETES)) for path in KUBERNETES.rglob("kustomization.yaml")}
    tried = INSTALLATIONS.values()
    components = {f"components/{name}" for each in tried for name in each.components}
    assert found == {each.base for each in tried} | components | INCLUDED


@every_installation
async def test_the_api_server_takes_every_object_to_the_last_field(
    control_plane: ControlPlane, admin: Client, namespace: str, installation: Installation
) -> None:
    objects = await rendered(control_plane, replace(installation, namespace=namespace))
    await apply(control_plane, objects)
    await apply(control_plane, objects)  # as an operator does it who does not know
    found = await admin.get(f"/apis/apps/v1/namespaces/{namespace}/deployments/istio-ca")
    assert found["spec"]["template"]["spec"]["serviceAccountName"] == "istio-ca"


async def test_a_field_that_there_is_not_would_be_noticed(control_plane: ControlPlane, namespace: str) -> None:
    objects = await rendered(control_plane, Installation(namespace=namespace))
    pod_spec(objects)["enableServiceLink"] = False
    with pytest.raises(AssertionError, match="enableServiceLink"):
        await apply(control_plane, objects, "--dry-run=server")


@every_installation
async def test_its_pods_may_run_where_the_restricted_standard_is_enforced(
    control_plane: ControlPlane, admin: Client, namespace: str, installation: Installation
) -> None:
    await admin.patch(
        f"/api/v1/namespaces/{namespace}",
        {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}},
    )
    objects = await rendered(control_plane, replace(installation, namespace=namespace))
    await apply(control_plane, objects)
    pods = f"/api/v1/namespaces/{namespace}/pods"
    pod = {"metadata": {"name": "istio-ca-0"}, "spec": pod_spec(objects)}
    made = await admin.create(pods, pod)

    token = [each["mountPath"] for each in made["spec"]["containers"][0]["volumeMounts"]]
    assert "/var/run/secrets/kubernetes.io/serviceaccount" in token
    container(objects)["securityContext"]["capabilities"]["drop"] = ["CHOWN"]
    other = {"metadata": {"name": "istio-ca-1"}, "spec": pod_spec(objects)}
    refusal = await answers(admin, 403, "POST", f"{pods}?dryRun=All", other)
    assert "unrestricted capabilities" in refusal["message"]


async def test_the_container_writes_nowhere_but_where_it_must(control_plane: ControlPlane) -> None:
    objects = await rendered(control_plane)
    mounts = volumes_by_path(objects)
    assert container(objects)["securityContext"]["readOnlyRootFilesystem"]
    writable = {path for path, volume in mounts.items() if "emptyDir" in volume}
    assert writable == {"/var/lib/istio-auth", "/tmp"}
    assert mounts["/tmp"]["emptyDir"]["medium"] == "Memory"  # where a key may pass
    assert pod_spec(objects)["enableServiceLinks"] is False


@every_installation
async def test_the_program_takes_its_settings_and_they_fit_what_is_around_it(
    control_plane: ControlPlane, tmp_path: Path, installation: Installation
) -> None:
    objects = await rendered(control_plane, installation)
    values = await effective(objects, tmp_path)
    mounts = [each["mountPath"] for each in container(objects)["volumeMounts"]]
    ports = {each["name"]: each["containerPort"] for each in container(objects)["ports"]}
    assert values["platform"] == "kubernetes"
    folders = Folders.of_user(pod_spec(objects)["securityContext"]["runAsUser"], environment(objects))
    # The state is in a folder of the volume, not the volume itself: that one is open to every user.
    assert {str(folders.config), str(folders.state)} <= set(mounts)
    assert FILE_NAME in of_kind(objects, "ConfigMap", "istio-ca")["data"]
    assert {name: str(HostPort("", port)) for name, port in ports.items()} == {
        "grpc": values["listen"],
        "health": values["metrics_listen"],
    }
    assert (values["kubernetes.tokens.verification"] == "offline") == ("offline-tokens" in installation.components)
    assert (values["kubernetes.controller.enabled"] == "false") == ("without-secrets" in installation.components)


async def test_the_service_leads_to_the_pods_by_a_name_of_the_serving_certificate(
    control_plane: ControlPlane,
) -> None:
    objects = await rendered(control_plane)
    service, template = of_kind(objects, "Service"), of_kind(objects, "Deployment")["spec"]["template"]
    metadata = service["metadata"]
    assert f"{metadata['name']}.{metadata['namespace']}.svc" in Config().serving_names
    assert service["spec"]["selector"].items() <= template["metadata"]["labels"].items()
    targets = {each["port"]: each["targetPort"] for each in service["spec"]["ports"]}
    ports = {each["containerPort"]: each["name"] for each in container(objects)["ports"]}
    assert targets == ports
    probed = {container(objects)[f"{name}Probe"]["httpGet"]["port"] for name in ("startup", "liveness", "readiness")}
    assert probed == {"health"}


async def test_it_has_the_time_that_it_needs_to_end(control_plane: ControlPlane) -> None:
    objects = await rendered(control_plane)
    pause = timedelta(seconds=container(objects)["lifecycle"]["preStop"]["sleep"]["seconds"])
    assert timedelta(seconds=pod_spec(objects)["terminationGracePeriodSeconds"]) > pause + STOP_WITHIN


async def test_high_availability_is_three_pods_apart_of_which_one_may_be_taken(control_plane: ControlPlane) -> None:
    objects = await rendered(control_plane, HIGH_AVAILABILITY)
    deployment, budget = of_kind(objects, "Deployment")["spec"], of_kind(objects, "PodDisruptionBudget")["spec"]
    labels = deployment["template"]["metadata"]["labels"].items()
    assert (deployment["replicas"], budget["maxUnavailable"]) == (3, 1)
    assert budget["selector"]["matchLabels"].items() <= labels
    spread = {each["topologyKey"]: each for each in pod_spec(objects)["topologySpreadConstraints"]}
    assert spread["kubernetes.io/hostname"]["whenUnsatisfiable"] == "DoNotSchedule"
    assert all(each["labelSelector"]["matchLabels"].items() <= labels for each in spread.values())


async def test_what_is_uninstalled_leaves_the_root_and_the_certificates(
    control_plane: ControlPlane, admin: Client, namespace: str
) -> None:
    objects = await rendered(control_plane, Installation(namespace=namespace))
    await apply(control_plane, objects)
    secrets = f"/api/v1/namespaces/{namespace}/secrets"
    for name in ("istio-ca-secret", "istio.default"):
        await admin.create(secrets, {"metadata": {"name": name}})
    await kubectl(control_plane, "delete", "--wait=false", "-f", "-", content=json.dumps(as_list(objects)))
    await vanishes(admin, f"/apis/apps/v1/namespaces/{namespace}/deployments/istio-ca")
    assert {each["metadata"]["name"] for each in await admin.list(secrets)} >= {"istio-ca-secret", "istio.default"}


async def test_a_kustomization_of_ones_own_is_as_the_readme_shows_it(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    shown = re.search(r"^```yaml\n(.*?)^```", (KUBERNETES / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    assert shown
    (tmp_path / "istio-auth").symlink_to(KUBERNETES.parents[1])
    (tmp_path / "kustomization.yaml").write_text(shown[1])
    (tmp_path / "ca.toml").write_text('platform = "kubernetes"\ntrust_domain = "example.org"\n')
    objects = list(yaml.safe_load_all(await kubectl(control_plane, "kustomize", str(tmp_path))))
    assert container(objects)["image"].startswith("registry.example.com/istio-ca:")
    assert "example.org" in of_kind(objects, "ConfigMap", "istio-ca")["data"][FILE_NAME]


def as_list(objects: Sequence[JSON]) -> JSON:
    return {"apiVersion": "v1", "kind": "List", "items": list(objects)}
