"""A CA that is not allowed what it needs says what, before it begins."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from ca.platform.kubernetes.api.client import KubernetesAPI
from ca.platform.kubernetes.api.connection import connected
from ca.platform.kubernetes.api.refusals import AccessRefused
from ca.platform.kubernetes.api.resources import CLUSTER_TRUST_BUNDLES, Resource
from ca.platform.kubernetes.permissions import Features, Permission, missing, needed, require
from tests.cluster.client import JSON, Client
from tests.cluster.control_plane import ControlPlane
from tests.cluster.waiting import eventually

SIGNER = "example.org/workload"


class Account:
    """A service account that gets what a test gives it."""

    def __init__(self, plane: ControlPlane, admin: Client, namespace: str, folder: Path) -> None:
        self.features = Features(namespace, SIGNER, offline=True)
        self._plane, self._admin, self._namespace, self._folder = plane, admin, namespace, folder

    @asynccontextmanager
    async def allowed(self, permissions: Iterable[Permission]) -> AsyncIterator[KubernetesAPI]:
        """The API server for the account, which may do this and nothing else."""
        namespace, name = self._namespace, f"role-{self._namespace}"
        await self._admin.create_service_account(namespace, "ca")
        everywhere = [rule(each) for each in permissions if not each.namespace]
        here = [rule(each) for each in permissions if each.namespace]
        rbac = "/apis/rbac.authorization.k8s.io/v1"
        subjects = [{"kind": "ServiceAccount", "name": "ca", "namespace": namespace}]
        for scope, kind, rules in (("", "ClusterRole", everywhere), (f"/namespaces/{namespace}", "Role", here)):
            role = {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name}
            body: JSON = {"metadata": {"name": name}, "rules": rules}
            await self._admin.create(f"{rbac}{scope}/{kind.lower()}s", body)
            binding = {"metadata": {"name": name}, "roleRef": role, "subjects": subjects}
            await self._admin.create(f"{rbac}{scope}/{kind.lower()}bindings", binding)
        try:
            token = await self._admin.service_account_token(namespace, "ca")
            path = self._plane.kubeconfig_for(token, self._folder / "kubeconfig")
            async with connected(path) as api:
                yield api
        finally:
            await self._admin.delete(f"{rbac}/clusterroles/{name}")
            await self._admin.delete(f"{rbac}/clusterrolebindings/{name}")


def rule(permission: Permission) -> JSON:
    """The rule of a role that grants it."""
    if isinstance(permission.resource, str):
        return {"verbs": [permission.verb], "nonResourceURLs": [permission.resource]}
    what = permission.resource.plural + (f"/{permission.subresource}" if permission.subresource else "")
    rule: JSON = {"verbs": [permission.verb], "apiGroups": [permission.resource.group], "resources": [what]}
    return rule | ({"resourceNames": [permission.name]} if permission.name else {})


async def lacks(api: KubernetesAPI, features: Features, wanted: set[str]) -> None:
    """Return once these are missing and no others: an authorizer hears of roles a little later."""

    async def look() -> bool:
        return {str(each) for each in await missing(api, needed(features))} == wanted

    await eventually(look)


@pytest.fixture
def account(control_plane: ControlPlane, admin: Client, namespace: str, tmp_path: Path) -> Account:
    return Account(control_plane, admin, namespace, tmp_path)


async def test_the_administrator_lacks_nothing(control_plane: ControlPlane) -> None:
    async with connected(control_plane.kubeconfig) as api:
        await require(api, Features("istio-system", SIGNER, offline=True))


async def test_with_all_that_is_needed_and_nothing_else_nothing_is_missing(account: Account) -> None:
    async with account.allowed(needed(account.features)) as api:
        await lacks(api, account.features, set())
        with capture_logs() as logs:
            await require(api, account.features)
    assert not logs


@pytest.mark.parametrize(
    "is_taken",
    [
        lambda each: str(each).startswith("create secrets in all namespaces:"),
        lambda each: str(each).startswith("update secrets istio-ca-secret in namespace"),
        lambda each: str(each).startswith("get leases.coordination.k8s.io istio-ca-leader in namespace"),
        lambda each: str(each).startswith("update certificatesigningrequests.certificates.k8s.io/approval:"),
        lambda each: str(each).startswith("watch pods in all namespaces:"),
        lambda each: each.verb == "sign",
    ],
)
async def test_a_verb_that_is_missing_is_named(account: Account, is_taken: Callable[[Permission], bool]) -> None:
    everything = needed(account.features)
    (taken,) = (each for each in everything if is_taken(each))
    async with account.allowed([each for each in everything if each != taken]) as api:
        await lacks(api, account.features, {str(taken)})
        with pytest.raises(AccessRefused) as refused:
            await require(api, account.features)
    assert str(refused.value) == f"permissions are missing: {taken}"


async def test_what_is_merely_good_to_have_is_a_warning(account: Account) -> None:
    everything = needed(account.features)
    optional = {str(each) for each in everything if each.optional and not is_for_all_accounts(each)}
    async with account.allowed([each for each in everything if not each.optional]) as api:
        await lacks(api, account.features, optional)
        with capture_logs() as logs:
            await require(api, account.features)
    assert {line["permission"] for line in logs} == optional
    assert any("create clustertrustbundles" in each for each in optional)


def is_for_all_accounts(permission: Permission) -> bool:
    """Whether Kubernetes lets every service account do it."""
    return isinstance(permission.resource, str) or (permission.verb, permission.resource) == (
        "get",
        CLUSTER_TRUST_BUNDLES,
    )


async def test_a_signer_may_be_allowed_by_its_whole_domain(account: Account) -> None:
    everything = needed(account.features)
    domain = Permission("sign", Resource("certificates.k8s.io", "v1", "signers", "Signer"), "", name="example.org/*")
    async with account.allowed([domain, *(each for each in everything if each.verb != "sign")]) as api:
        await lacks(api, account.features, set())


async def test_without_any_role_everything_is_named(account: Account) -> None:
    async with account.allowed([]) as api:
        with pytest.raises(AccessRefused) as refused:
            await require(api, account.features)
    fatal = [each for each in needed(account.features) if not each.optional]
    assert str(refused.value) == f"permissions are missing: {'; '.join(map(str, fatal))}"
