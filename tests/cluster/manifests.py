"""The manifests of deploy/kubernetes as an operator uses them: rendered by kustomize, and applied by kubectl."""

from __future__ import annotations

import asyncio
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from ca.platform.kubernetes.permissions import Permission
from ca.platform.kubernetes.requests.signer import DEFAULT_SIGNER_NAME
from tests.cluster.client import JSON, Client
from tests.cluster.control_plane import ControlPlane
from tests.cluster.waiting import eventually

KUBERNETES = Path(__file__).parents[2] / "deploy" / "kubernetes"
ACCOUNT = "istio-ca"  # the name of the CA's service account
AGENT = "istio-node-agent"  # the same of the node agents'
NODE = "node-of-the-manifests"  # where a pod of the DaemonSet would be
_ROLES = ("Role", "ClusterRole")
_OF_THE_CLUSTER = ("ClusterRole", "ClusterRoleBinding")


@dataclass(frozen=True)
class Rule:
    """One thing that somebody may do.

    Args:
        verb: the verb.
        resource: in the words of `KubernetesAPI.calls`: `signers.certificates.k8s.io`, `pods/status`.
        name: the only object that it holds for; empty for all.
    """

    verb: str
    resource: str
    name: str = ""

    @classmethod
    def of(cls, permission: Permission) -> Rule:
        """The rule that grants a permission, in whichever namespace."""
        part = f"/{permission.subresource}" if permission.subresource else ""
        return cls(permission.verb, f"{permission.resource}{part}", permission.name)


@dataclass(frozen=True)
class Installation:
    """One way to install the CA.

    Args:
        base: the folder in `deploy/kubernetes` that it stands on.
        components: the names of components that it has.
        namespace: where the CA is; in another one than its own, what belongs to the cluster has other names.
        signer: the signer name that it signs under.
    """

    base: str = "base"
    components: tuple[str, ...] = ()
    namespace: str = "istio-system"
    signer: str = DEFAULT_SIGNER_NAME

    def kustomization(self, place: str) -> JSON:
        """How an operator writes it down, for whom `deploy/kubernetes` is at this place."""
        return {
            "resources": [f"{place}/{self.base}"],
            "components": [f"{place}/components/{name}" for name in self.components],
            "namespace": self.namespace,
            "transformers": [json.dumps(_suffix(self.namespace))] if self.namespace != BASE.namespace else [],
        }


BASE = Installation()


async def rendered(plane: ControlPlane, installation: Installation = BASE) -> list[JSON]:
    """The objects of an installation, as the kubectl of this control plane renders them."""
    with tempfile.TemporaryDirectory() as folder:
        _write_kustomization(Path(folder), installation)
        text = await kubectl(plane, "kustomize", folder)
    for slash in ("/", ":"):  # the latter in names of ClusterTrustBundles
        text = text.replace(DEFAULT_SIGNER_NAME.replace("/", slash), installation.signer.replace("/", slash))
    return list(yaml.safe_load_all(text))


async def apply(plane: ControlPlane, objects: Iterable[JSON], *flags: str) -> None:
    """Have them at the API server, which takes no field that it does not know."""
    content = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
    await kubectl(plane, "apply", "--server-side", "--validate=strict", *flags, "-f", "-", content=content)


async def ca_account(
    plane: ControlPlane, path: Path, installation: Installation = BASE, *, seconds: int = 3600
) -> Path:
    """Install the CA, whose Deployment nobody starts here, and become its service account.

    Args:
        plane: where.
        path: for a kubeconfig that shows a token of the account.
        installation: how; its namespace is made if it is not there.
        seconds: how long the token is good.

    Returns:
        The path, once the account has its rights.
    """
    objects, namespace = await rendered(plane, installation), installation.namespace
    async with plane.admin() as admin:
        if await admin.find(f"/api/v1/namespaces/{namespace}") is None:
            await admin.create_namespace(namespace)
        await apply(plane, objects)
        token = await admin.service_account_token(namespace, ACCOUNT, expiration_seconds=seconds)
    async with plane.client(token) as account:

        async def has_its_rights() -> bool:
            return granted(objects) <= await rights(account, namespace)

        await eventually(has_its_rights)  # an authorizer hears of roles a little later
    return plane.kubeconfig_for(token, path)


def of_kind(objects: Iterable[JSON], kind: str, name: str = "") -> JSON:
    """The only one of its kind whose name begins so."""
    (found,) = [each for each in objects if each["kind"] == kind and each["metadata"]["name"].startswith(name)]
    return found


def pod_spec(objects: Iterable[JSON], kind: str = "Deployment") -> JSON:
    """What the pods of the CA, or of the agent's DaemonSet, are made of."""
    spec: JSON = of_kind(objects, kind)["spec"]["template"]["spec"]
    return spec


def container(objects: Iterable[JSON], kind: str = "Deployment") -> JSON:
    """The only container of such a pod."""
    (only,) = pod_spec(objects, kind)["containers"]
    found: JSON = only
    return found


def volumes_by_path(objects: Iterable[JSON], kind: str = "Deployment") -> dict[str, JSON]:
    """What that container finds mounted, by where."""
    volumes = {each["name"]: each for each in pod_spec(objects, kind)["volumes"]}
    return {each["mountPath"]: volumes[each["name"]] for each in container(objects, kind)["volumeMounts"]}


def environment(objects: Iterable[JSON], kind: str = "Deployment") -> dict[str, str]:
    """The environment of the CA in its pod, or of the agent in that of the DaemonSet, as a kubelet would set it."""
    workload = of_kind(objects, kind)
    (container,) = workload["spec"]["template"]["spec"]["containers"]
    namespace = workload["metadata"]["namespace"]
    of_pod = {"metadata.namespace": namespace, "spec.nodeName": NODE, "status.hostIP": "192.0.2.1"}
    found: dict[str, str] = {}
    for each in container["env"]:
        value = each["value"] if "value" in each else of_pod[each["valueFrom"]["fieldRef"]["fieldPath"]]
        found[each["name"]] = re.sub(r"\$\((\w+)\)", lambda match: found[match[1]], value)
    return found


def granted(objects: Iterable[JSON], kinds: Sequence[str] = _ROLES) -> set[Rule]:
    """What the roles among these objects allow."""
    return {rule for each in objects if each["kind"] in kinds for rule in _rules(each["rules"])}


async def rights(client: Client, namespace: str) -> set[Rule]:
    """What a client may do in a namespace, as the API server sees it."""
    review = {"spec": {"namespace": namespace}}
    answer = await client.create("/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", review)
    assert not answer["status"]["incomplete"], answer
    return set(_rules(answer["status"]["resourceRules"]))


async def kubectl(plane: ControlPlane, *words: str, content: str = "") -> str:
    """What kubectl prints for the administrator."""
    process = await asyncio.create_subprocess_exec(
        plane.binaries / "kubectl",
        f"--kubeconfig={plane.kubeconfig}",
        *words,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate(content.encode())
    assert process.returncode == 0, err.decode()
    return out.decode()


def _write_kustomization(folder: Path, installation: Installation) -> None:
    place = os.path.relpath(KUBERNETES, folder.resolve())
    (folder / "kustomization.yaml").write_text(json.dumps(installation.kustomization(place)))


def _rules(rules: Iterable[JSON]) -> Iterator[Rule]:
    for rule in rules:
        for group in rule.get("apiGroups", ()):
            for resource in rule.get("resources", ()):
                for name in rule.get("resourceNames") or ("",):
                    yield from (Rule(verb, _in_group(resource, group), name) for verb in rule["verbs"])


def _in_group(resource: str, group: str) -> str:
    plural, slash, subresource = resource.partition("/")
    return f"{plural}.{group}{slash}{subresource}" if group else resource


def _suffix(namespace: str) -> JSON:
    """A transformer that gives what belongs to no namespace a name of its own."""
    return {
        "apiVersion": "builtin",
        "kind": "SuffixTransformer",
        "metadata": {"name": "names-of-the-cluster"},
        "suffix": f"-{namespace}",
        "fieldSpecs": [{"kind": kind, "path": "metadata/name"} for kind in _OF_THE_CLUSTER],
    }
