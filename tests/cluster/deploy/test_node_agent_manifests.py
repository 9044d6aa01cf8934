"""The manifests of the node agent: its program takes them, what they name is there, and nothing more is allowed."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest

from ca.config import TokenSettings
from istio_auth.daemon.lifecycle import STOP_WITHIN
from istio_auth.host_port import HostPort
from istio_auth.pem import write_certificates
from tests.cluster import manifests
from tests.cluster.client import JSON, Client
from tests.cluster.control_plane import ControlPlane
from tests.cluster.deploy.test_manifests import WITH_AGENTS, WITH_SOCKETS, effective
from tests.cluster.manifests import (
    AGENT,
    NODE,
    Installation,
    Rule,
    apply,
    environment,
    granted,
    of_kind,
    rendered,
    rights,
)
from tests.cluster.waiting import answers, eventually
from tests.fakes.authority import FakeAuthority
from tests.fakes.processes import program

FILE = "node-agent.toml"
CREDENTIALS, RUN, SERVICE_ACCOUNT = (
    "/var/run/secrets/istio-auth",
    "/run/istio-auth",
    "/var/run/secrets/kubernetes.io/serviceaccount",
)
PODS_AT_THE_KUBELET = Rule("get", "nodes/pods")
# include/uapi/linux/capability.h
CHOWN, SYS_PTRACE, SYS_ADMIN = 0, 19, 21
of_agents = pytest.mark.parametrize("installation", [WITH_AGENTS, WITH_SOCKETS], ids=["volumes", "sockets"])
pod_spec = partial(manifests.pod_spec, kind="DaemonSet")
container = partial(manifests.container, kind="DaemonSet")
volumes_by_path = partial(manifests.volumes_by_path, kind="DaemonSet")


async def settings(objects: Sequence[JSON], folder: Path, memory: Path, bundle: str) -> dict[str, str]:
    """What the program in the pod says that it would run with, where other folders stand for those of the pod."""
    text: str = of_kind(objects, "ConfigMap", AGENT)["data"][FILE]
    assert text.count(CREDENTIALS) == 2
    (folder / FILE).write_text(text.replace(CREDENTIALS, str(folder)).replace(RUN, str(memory)))
    for name, content in {"root-cert.pem": bundle, "ca.crt": bundle, "token": "a.b.c"}.items():
        (folder / name).write_text(content)
    process = await asyncio.create_subprocess_exec(
        program("node-agent"),
        *("check-config", "--output", "json", "--config", folder / FILE),
        env={
            "PATH": os.environ["PATH"],
            "ISTIO_AUTH_AGENT__KUBERNETES__KUBELET_CA": str(folder / "ca.crt"),
            "ISTIO_AUTH_AGENT__KUBERNETES__TOKEN_FILE": str(folder / "token"),
            **environment(objects, "DaemonSet"),
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    found = {row["name"]: row["value"] for row in json.loads(out)["settings"]}
    return {name: _as_in_the_pod(value, folder, memory) for name, value in found.items()}


def _as_in_the_pod(value: object, folder: Path, memory: Path) -> str:
    return str(value).replace(str(folder), CREDENTIALS).replace(str(memory), RUN)


@of_agents
async def test_the_program_takes_its_settings_and_they_fit_what_is_around_it(
    control_plane: ControlPlane, tmp_path: Path, installation: Installation, authority: FakeAuthority
) -> None:
    objects = await rendered(control_plane, installation)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as memory:  # as /run of a node is
        values = await settings(objects, tmp_path, Path(memory), write_certificates([authority.certificate]).decode())
    assert values["name"] == NODE
    mounts = volumes_by_path(objects)
    projected = {name: source for each in mounts[CREDENTIALS]["projected"]["sources"] for name, source in each.items()}
    assert values["ca_token_file"] == f"{CREDENTIALS}/{projected['serviceAccountToken']['path']}"
    assert values["trust_bundle"] == f"{CREDENTIALS}/{projected['configMap']['items'][0]['path']}"
    assert projected["serviceAccountToken"]["audience"] in TokenSettings().audiences
    assert (projected["configMap"]["name"], projected["configMap"]["items"][0]["key"]) == (
        "istio-ca-root-cert",
        "root-cert.pem",
    )
    assert mounts[values["run_folder"]]["hostPath"]["path"] == values["run_folder"]  # outlives the pod of the agent
    assert Path(values["state_folder"]).is_relative_to(values["run_folder"])
    (port,) = container(objects)["ports"]
    assert values["metrics_listen"] == str(HostPort("", port["containerPort"]))
    service = of_kind(objects, "Service", "istio-ca")
    assert values["ca_address"] == f"{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    asks = installation is WITH_SOCKETS
    assert (values["kubernetes.kubelet"], values["kubernetes.kubelet_name"]) == (
        ("192.0.2.1:10250", NODE) if asks else ("", "")
    )


@of_agents
async def test_the_csi_driver_is_the_one_that_the_program_serves(
    control_plane: ControlPlane, tmp_path: Path, installation: Installation, authority: FakeAuthority
) -> None:
    objects = await rendered(control_plane, installation)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
        values = await settings(objects, tmp_path, Path(memory), write_certificates([authority.certificate]).decode())
    driver = of_kind(objects, "CSIDriver")
    assert driver["metadata"]["name"] == values["csi.driver"]
    (asked,) = driver["spec"]["tokenRequests"]
    assert asked["audience"] == values["csi.audience"]
    kubelet = values["csi.kubelet_folder"]
    assert Path(values["csi.endpoint"]).parent == Path(kubelet, "plugins", values["csi.driver"])
    (mount,) = [each for each in container(objects)["volumeMounts"] if each["mountPath"] == kubelet]
    assert mount["mountPropagation"] == "Bidirectional"
    assert volumes_by_path(objects)[kubelet]["hostPath"] == {"path": kubelet, "type": "Directory"}


@of_agents
async def test_the_ca_takes_its_account_for_a_node_account_wherever_it_is_installed(
    control_plane: ControlPlane, tmp_path: Path, installation: Installation
) -> None:
    for namespace in ("istio-system", "certificates"):
        objects = await rendered(control_plane, replace(installation, namespace=namespace))
        account = pod_spec(objects)["serviceAccountName"]
        values = await effective(objects, tmp_path)
        assert f"{namespace}/{account}" in values["kubernetes.tokens.node_accounts"]


@of_agents
async def test_its_account_may_do_what_it_must_and_nothing_else(
    control_plane: ControlPlane, admin: Client, namespace: str, installation: Installation
) -> None:
    objects = await rendered(control_plane, replace(installation, namespace=namespace))
    wanted = {PODS_AT_THE_KUBELET} if installation is WITH_SOCKETS else set()
    of_agent = [each for each in objects if each["metadata"]["name"].startswith(AGENT)]
    assert granted(of_agent) == wanted
    await apply(control_plane, objects)
    await admin.create_service_account(namespace, "anybody")
    token = await admin.service_account_token(namespace, AGENT)
    other = await admin.service_account_token(namespace, "anybody")
    async with control_plane.client(token) as agent, control_plane.client(other) as anybody:

        async def has_its_rights() -> bool:
            return await rights(agent, namespace) - await rights(anybody, namespace) == wanted

        await eventually(has_its_rights)


@of_agents
async def test_its_pod_is_taken_where_privileged_ones_are_and_nowhere_else(
    control_plane: ControlPlane, admin: Client, namespace: str, installation: Installation
) -> None:
    objects = await rendered(control_plane, replace(installation, namespace=namespace))
    await apply(control_plane, objects)
    pods, path = f"/api/v1/namespaces/{namespace}/pods", f"/api/v1/namespaces/{namespace}"
    pod = {"metadata": {"name": "istio-node-agent-0"}, "spec": pod_spec(objects)}
    await admin.patch(path, {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "baseline"}}})
    refusal = await answers(admin, 403, "POST", f"{pods}?dryRun=All", pod)  # whose labels admission hears of later
    assert "privileged" in refusal["message"]
    await admin.patch(path, {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "privileged"}}})
    made = await answers(admin, 201, "POST", pods, pod)
    assert made["spec"]["priority"] == 2_000_001_000  # system-node-critical
    paths = {each["mountPath"] for each in made["spec"]["containers"][0]["volumeMounts"]}
    assert (SERVICE_ACCOUNT in paths) == (installation is WITH_SOCKETS)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has capabilities to drop")
@pytest.mark.parametrize(
    ("installation", "kept"),
    [(WITH_AGENTS, {CHOWN, SYS_ADMIN}), (WITH_SOCKETS, {CHOWN, SYS_ADMIN, SYS_PTRACE})],
    ids=["volumes", "sockets"],
)
async def test_its_process_keeps_the_capabilities_that_it_must_have_and_no_way_to_others(
    control_plane: ControlPlane, installation: Installation, kept: set[int]
) -> None:
    objects = await rendered(control_plane, installation)
    *drop, started = container(objects)["command"]
    assert started == "node-agent"
    process = await asyncio.create_subprocess_exec(
        *drop, "cat", "/proc/self/status", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    told = dict(line.split(":\t", 1) for line in out.decode().splitlines() if ":\t" in line)
    mask = sum(1 << number for number in kept)
    assert {name: int(told[f"Cap{name}"], 16) for name in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {
        "Inh": 0,
        "Prm": mask,
        "Eff": mask,
        "Bnd": mask,
        "Amb": 0,
    }
    assert told["NoNewPrivs"] == "1"


@of_agents
async def test_it_is_on_every_node_writes_nowhere_but_where_it_must_and_has_the_time_to_end(
    control_plane: ControlPlane, installation: Installation
) -> None:
    objects = await rendered(control_plane, installation)
    spec = pod_spec(objects)
    assert spec["tolerations"] == [{"operator": "Exists"}]
    assert spec["enableServiceLinks"] is False
    assert container(objects)["securityContext"]["readOnlyRootFilesystem"]
    assert bool(spec.get("hostPID")) == (installation is WITH_SOCKETS)
    assert not spec.get("hostNetwork")
    assert not spec.get("hostIPC")
    mounts = {each["mountPath"]: each for each in container(objects)["volumeMounts"]}
    writable = {path for path, each in mounts.items() if not each.get("readOnly")}
    assert writable == {"/var/lib/kubelet", RUN, "/tmp"}
    assert volumes_by_path(objects)["/tmp"]["emptyDir"]["medium"] == "Memory"
    assert timedelta(seconds=spec["terminationGracePeriodSeconds"]) > STOP_WITHIN
    update = of_kind(objects, "DaemonSet")["spec"]["updateStrategy"]["rollingUpdate"]
    assert update == {"maxUnavailable": "10%"}
