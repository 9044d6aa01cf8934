"""What the service account of the manifests may do: all that the CA needs, and nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from ca.platform.kubernetes.api.client import KubernetesAPI, Selection
from ca.platform.kubernetes.api.connection import connected
from ca.platform.kubernetes.api.objects import Key
from ca.platform.kubernetes.api.refusals import AccessRefused
from ca.platform.kubernetes.api.resources import CONFIG_MAPS, SECRETS
from ca.platform.kubernetes.permissions import Features, missing, needed, require
from tests.cluster.client import JSON, Client
from tests.cluster.control_plane import ControlPlane
from tests.cluster.manifests import ACCOUNT, BASE, Installation, Rule, ca_account, granted, rendered, rights
from tests.cluster.waiting import eventually

RBAC = "/apis/rbac.authorization.k8s.io/v1"
REVIEWS = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
FORBIDDEN: list[dict[str, str]] = [
    {"verb": "create", "resource": "pods"},
    {"verb": "create", "resource": "pods", "subresource": "exec"},
    {"verb": "create", "resource": "serviceaccounts", "subresource": "token"},
    {"verb": "impersonate", "resource": "serviceaccounts"},
    {"verb": "update", "resource": "secrets"},
    {"verb": "update", "resource": "configmaps", "name": "another"},
    {"verb": "get", "resource": "configmaps", "name": "another"},
    {"verb": "list", "resource": "configmaps"},
    {"verb": "update", "group": "coordination.k8s.io", "resource": "leases", "name": "another"},
    {"verb": "create", "group": "certificates.k8s.io", "resource": "certificatesigningrequests"},
    {"verb": "sign", "group": "certificates.k8s.io", "resource": "signers", "name": "example.com/another"},
    {"verb": "bind", "group": "rbac.authorization.k8s.io", "resource": "clusterroles"},
    {"verb": "escalate", "group": "rbac.authorization.k8s.io", "resource": "clusterroles"},
    {"verb": "create", "group": "rbac.authorization.k8s.io", "resource": "clusterrolebindings"},
    {"verb": "get", "resource": "nodes", "subresource": "proxy"},
]

OFFLINE = Installation(components=("offline-tokens",))
each_choice = pytest.mark.parametrize(
    "components", [(), OFFLINE.components, ("without-secrets",)], ids=["base", "offline", "without-secrets"]
)


def features(installation: Installation) -> Features:
    """What a CA does that is installed like this."""
    return Features(
        installation.namespace,
        installation.signer,
        offline="offline-tokens" in installation.components,
        secrets="without-secrets" not in installation.components,
    )


async def allowed(admin: Client, ca_namespace: str, /, **attributes: str) -> bool:
    """Whether the account of the CA in this namespace may do something."""
    user = f"system:serviceaccount:{ca_namespace}:{ACCOUNT}"
    groups = ["system:serviceaccounts", f"system:serviceaccounts:{ca_namespace}", "system:authenticated"]
    spec: JSON = {"user": user, "groups": groups, "resourceAttributes": attributes}
    answer = await admin.create(REVIEWS, {"spec": spec})
    found: bool = answer["status"]["allowed"]
    return found


@asynccontextmanager
async def account(plane: ControlPlane, path: Path, namespace: str, *components: str) -> AsyncIterator[KubernetesAPI]:
    """The API server for the CA that is installed like this."""
    installation = Installation(namespace=namespace, components=components)
    async with connected(await ca_account(plane, path / "kubeconfig", installation)) as api:
        yield api


@each_choice
async def test_its_roles_allow_what_the_program_needs_and_nothing_else(
    control_plane: ControlPlane, namespace: str, components: tuple[str, ...]
) -> None:
    installation = Installation(namespace=namespace, components=components)
    objects = await rendered(control_plane, installation)
    of_resources = [each for each in needed(features(installation)) if not isinstance(each.resource, str)]
    assert granted(objects, ["ClusterRole"]) == {Rule.of(each) for each in of_resources if not each.namespace}
    assert granted(objects, ["Role"]) == {Rule.of(each) for each in of_resources if each.namespace}


@each_choice
async def test_the_api_server_allows_the_account_what_the_program_asks_for_at_its_start(
    control_plane: ControlPlane, namespace: str, tmp_path: Path, components: tuple[str, ...]
) -> None:
    installation = Installation(namespace=namespace, components=components)
    async with account(control_plane, tmp_path, namespace, *components) as api:
        await require(api, features(installation))
        assert await missing(api, needed(features(installation))) == ()


async def test_the_published_keys_are_read_where_nobody_else_may(
    own_control_plane: ControlPlane, tmp_path: Path
) -> None:
    paths = [each for each in needed(features(OFFLINE)) if isinstance(each.resource, str)]
    async with own_control_plane.admin() as admin:
        # What clusters have that are closed tighter.
        await admin.delete(f"{RBAC}/clusterrolebindings/system:service-account-issuer-discovery")
        async with account(own_control_plane, tmp_path, BASE.namespace) as api:
            await eventually(partial(missing, api, tuple(paths)))
        async with account(own_control_plane, tmp_path, BASE.namespace, *OFFLINE.components) as api:

            async def nothing_is_missing() -> bool:
                return not await missing(api, tuple(paths))

            await eventually(nothing_is_missing)
            assert "keys" in await api.read("/openid/v1/jwks")


async def test_it_has_the_rights_of_its_roles_and_those_that_everybody_has(
    control_plane: ControlPlane, admin: Client, namespace: str, tmp_path: Path
) -> None:
    installation = Installation(namespace=namespace)
    await ca_account(control_plane, tmp_path / "kubeconfig", installation)
    await admin.create_service_account(namespace, "stranger")
    of_stranger = await admin.service_account_token(namespace, "stranger")
    of_account = await admin.service_account_token(namespace, ACCOUNT)
    objects = await rendered(control_plane, installation)
    async with control_plane.client(of_stranger) as stranger, control_plane.client(of_account) as account:
        here, elsewhere = [
            await rights(account, place) - await rights(stranger, place) for place in (namespace, "default")
        ]
    assert here == granted(objects)
    assert elsewhere == granted(objects, ["ClusterRole"])


async def test_it_can_not_make_itself_stronger_or_meddle_with_what_is_others(
    control_plane: ControlPlane, admin: Client, namespace: str, tmp_path: Path
) -> None:
    async with account(control_plane, tmp_path, namespace):
        assert await allowed(admin, namespace, verb="create", group="authentication.k8s.io", resource="tokenreviews")
        assert [each for each in FORBIDDEN if await allowed(admin, namespace, **each, namespace=namespace)] == []


async def test_its_lease_is_in_its_own_namespace_alone(
    control_plane: ControlPlane, admin: Client, namespace: str, tmp_path: Path
) -> None:
    async with account(control_plane, tmp_path, namespace):
        lease = {"group": "coordination.k8s.io", "resource": "leases"}
        for verb in ("get", "create", "update"):
            wanted = {"verb": verb, "name": "" if verb == "create" else "istio-ca-leader", **lease}
            assert await allowed(admin, namespace, namespace=namespace, **wanted)
            assert not await allowed(admin, namespace, namespace="default", **wanted)


async def test_without_the_secrets_of_others_it_reads_its_own_and_no_other(
    control_plane: ControlPlane, admin: Client, namespace: str, tmp_path: Path
) -> None:
    secrets = f"/api/v1/namespaces/{namespace}/secrets"
    for name in ("cacerts", "istio-ca-secret", "others"):
        await admin.create(secrets, {"metadata": {"name": name}})
    async with account(control_plane, tmp_path, namespace, "without-secrets") as api:
        for name in ("cacerts", "istio-ca-secret"):
            selection = Selection(namespace, f"metadata.name={name}")
            (page,) = [page async for page in api.pages(SECRETS, selection)]
            assert [Key.of(item).name for item in page.items] == [name]
            await api.get(SECRETS, name, namespace=namespace)
        with pytest.raises(AccessRefused):
            await api.get(SECRETS, "others", namespace=namespace)
        for everything in (Selection(), Selection(namespace)):
            with pytest.raises(AccessRefused):
                [page async for page in api.pages(SECRETS, everything)]


async def test_of_config_maps_it_sees_those_of_its_own_name_in_every_namespace(
    control_plane: ControlPlane, admin: Client, namespace: str, tmp_path: Path
) -> None:
    await admin.create(f"/api/v1/namespaces/{namespace}/configmaps", {"metadata": {"name": "istio-ca-root-cert"}})
    async with account(control_plane, tmp_path, namespace) as api:
        async for page in api.pages(CONFIG_MAPS, Selection(fields="metadata.name=istio-ca-root-cert")):
            assert namespace in {Key.of(item).namespace for item in page.items}
        with pytest.raises(AccessRefused):
            [page async for page in api.pages(CONFIG_MAPS)]
