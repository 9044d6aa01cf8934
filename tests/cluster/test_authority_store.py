"""The state of the authority in a secret: one root however many begin, and nothing made where nothing could be seen."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from ca.authority.authority import open_authority
from ca.authority.state import AuthorityState, IssuerState
from ca.platform.kubernetes.api.client import KubernetesAPI
from ca.platform.kubernetes.api.connection import connected
from ca.platform.kubernetes.api.refusals import AccessRefused
from ca.platform.kubernetes.roots.authority_store import NAME, TYPE, SecretAuthorityStore
from istio_auth.errors import Code, ConfigurationError, ConflictError, IstioAuthError, NotReady
from istio_auth.spiffe_id import TrustDomain
from istio_auth.system_clock import SystemClock
from tests.cluster.client import JSON, Client
from tests.cluster.control_plane import ControlPlane
from tests.cluster.waiting import eventually
from tests.fakes.authority import FakeAuthority

LOCAL = TrustDomain("cluster.local")
RBAC = "/apis/rbac.authorization.k8s.io/v1"


def state() -> AuthorityState:
    root = FakeAuthority()
    return AuthorityState(LOCAL, IssuerState(root.certificate, root.certificate, key=root.key))


def path(namespace: str) -> str:
    return f"/api/v1/namespaces/{namespace}/secrets/{NAME}"


@pytest.fixture
async def api(control_plane: ControlPlane) -> AsyncIterator[KubernetesAPI]:
    async with connected(control_plane.kubeconfig) as api:
        yield api


@pytest.fixture
async def store(api: KubernetesAPI, namespace: str) -> SecretAuthorityStore:
    return SecretAuthorityStore(api, namespace, LOCAL)


async def test_what_is_stored_comes_back_and_is_a_secret_as_istios_own_ca_makes_it(
    store: SecretAuthorityStore, admin: Client, namespace: str
) -> None:
    assert await asyncio.to_thread(store.load) is None
    written = await asyncio.to_thread(store.store, state(), expected=None)
    assert await asyncio.to_thread(store.load) == written
    secret = await admin.get(path(namespace))
    assert secret["type"] == TYPE == "istio.io/ca-root"
    for key in ("ca-cert.pem", "ca-key.pem"):
        assert base64.b64decode(secret["data"][key]).startswith(b"-----BEGIN ")


async def test_replicas_that_begin_together_end_with_one_root(control_plane: ControlPlane, namespace: str) -> None:
    async def begin() -> bytes:
        async with connected(control_plane.kubeconfig) as api:
            store = SecretAuthorityStore(api, namespace, LOCAL)
            return (await asyncio.to_thread(open_authority, store, LOCAL, SystemClock())).root_pem()

    roots = await asyncio.gather(*(begin() for _ in range(8)))
    assert len(set(roots)) == 1
    assert roots[0].count(b"BEGIN CERTIFICATE") == 1


async def test_a_version_that_is_no_longer_stored_is_not_overwritten(store: SecretAuthorityStore) -> None:
    first = await asyncio.to_thread(store.store, state(), expected=None)
    with pytest.raises(ConflictError):
        await asyncio.to_thread(store.store, state(), expected=None)
    second = await asyncio.to_thread(store.store, replace(first.value, sequence=2), expected=first.version)
    with pytest.raises(ConflictError):
        await asyncio.to_thread(store.store, state(), expected=first.version)
    assert await asyncio.to_thread(store.load) == second


async def test_what_others_wrote_beside_the_state_stays(
    store: SecretAuthorityStore, admin: Client, namespace: str
) -> None:
    first = await asyncio.to_thread(store.store, state(), expected=None)
    metadata = {"labels": {"team": "mesh"}, "annotations": {"example.com/note": "kept"}}
    await admin.patch(path(namespace), {"metadata": metadata, "data": {"other": "a2VwdA=="}})
    await asyncio.to_thread(store.store, replace(first.value, sequence=2), expected=first.version)
    secret = await admin.get(path(namespace))
    assert {key: secret["metadata"][key] for key in metadata} == metadata
    assert secret["data"]["other"] == "a2VwdA=="
    loaded = await asyncio.to_thread(store.load)
    assert loaded is not None
    assert loaded.value.sequence == 2


async def test_where_the_namespace_is_not_there_no_root_is_made(
    api: KubernetesAPI, admin: Client, namespace: str
) -> None:
    name = f"{namespace}-later"
    store = SecretAuthorityStore(api, name, LOCAL)
    with pytest.raises(ConfigurationError, match=f"no namespace {name}"):
        await asyncio.to_thread(open_authority, store, LOCAL, SystemClock())
    await admin.create_namespace(name)
    assert await asyncio.to_thread(open_authority, store, LOCAL, SystemClock())
    await admin.delete(f"/api/v1/namespaces/{name}")


async def test_what_may_not_be_seen_is_not_taken_for_not_there(
    control_plane: ControlPlane, admin: Client, namespace: str, tmp_path: Path
) -> None:
    await admin.create_service_account(namespace, "ca")
    token = await admin.service_account_token(namespace, "ca")
    async with connected(control_plane.kubeconfig_for(token, tmp_path / "kubeconfig")) as api:
        store = SecretAuthorityStore(api, namespace, LOCAL)
        with pytest.raises(AccessRefused, match="secrets"):
            await asyncio.to_thread(store.load)
        await grant(admin, namespace, "secrets", "ca")
        with pytest.raises(AccessRefused, match="namespaces"):  # there is no such secret, but is there the namespace?
            await eventually(lambda: loads(store, "namespaces"))
        await grant(admin, namespace, "namespaces", "ca")

        async def sees_nothing() -> bool:
            try:
                return await asyncio.to_thread(store.load) is None
            except AccessRefused:
                return False

        assert await eventually(sees_nothing)


async def loads(store: SecretAuthorityStore, what: str) -> bool:
    """Load, where only the refusal of this counts."""
    try:
        return await asyncio.to_thread(store.load) is None
    except AccessRefused as error:
        if what in str(error).partition(":")[0]:
            raise
        return False


async def grant(admin: Client, namespace: str, resource: str, account: str) -> None:
    rules = [{"apiGroups": [""], "resources": [resource], "verbs": ["get"]}]
    subjects = [{"kind": "ServiceAccount", "name": account, "namespace": namespace}]
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": resource}
    await admin.create(f"{RBAC}/namespaces/{namespace}/roles", {"metadata": {"name": resource}, "rules": rules})
    binding: JSON = {"metadata": {"name": resource}, "subjects": subjects, "roleRef": role}
    await admin.create(f"{RBAC}/namespaces/{namespace}/rolebindings", binding)


async def test_an_api_server_that_is_away_or_hangs_is_not_taken_for_an_empty_one(
    control_plane: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    config = json.loads(control_plane.kubeconfig.read_text())
    with socket.create_server(("127.0.0.1", 0)) as listener:  # takes connections, and never answers
        config["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{listener.getsockname()[1]}"
        (kubeconfig := tmp_path / "kubeconfig").write_text(json.dumps(config))
        async with connected(kubeconfig) as api:
            store = SecretAuthorityStore(api, namespace, LOCAL, deadline=timedelta(seconds=0.3))
            with pytest.raises(NotReady, match=r"no answer within 0\.3 s"):
                await asyncio.to_thread(store.load)
    async with connected(kubeconfig) as api:
        store = SecretAuthorityStore(api, namespace, LOCAL)
        with pytest.raises(NotReady, match="can not be reached"):
            await asyncio.to_thread(open_authority, store, LOCAL, SystemClock())


async def test_a_secret_of_another_type_is_not_the_authoritys(
    store: SecretAuthorityStore, admin: Client, namespace: str
) -> None:
    secrets = f"/api/v1/namespaces/{namespace}/secrets"
    await admin.create(secrets, {"metadata": {"name": NAME}, "type": "Opaque", "data": {}})
    with pytest.raises(ConfigurationError, match=f"{namespace}/{NAME} is of type Opaque"):
        await asyncio.to_thread(store.load)
    await admin.delete(path(namespace))
    assert await asyncio.to_thread(store.load) is None


async def test_an_empty_or_damaged_secret_is_an_error_that_names_it_and_never_a_reason_for_a_new_root(
    store: SecretAuthorityStore, admin: Client, namespace: str
) -> None:
    secrets = f"/api/v1/namespaces/{namespace}/secrets"
    await admin.create(secrets, {"metadata": {"name": NAME}, "type": TYPE, "data": {}})
    with pytest.raises(ConfigurationError, match=rf"{namespace}/{NAME}: ca-cert\.pem is missing"):
        await asyncio.to_thread(open_authority, store, LOCAL, SystemClock())


async def test_an_immutable_secret_can_be_used_and_is_told_of_when_it_should_change(
    store: SecretAuthorityStore, admin: Client, namespace: str
) -> None:
    first = await asyncio.to_thread(store.store, state(), expected=None)
    await admin.patch(path(namespace), {"immutable": True})
    assert await asyncio.to_thread(store.load) == first
    with pytest.raises(ConfigurationError, match="immutable"):
        await asyncio.to_thread(store.store, replace(first.value, sequence=2), expected=first.version)


async def test_a_call_on_the_event_loop_is_refused_instead_of_hanging_for_ever(store: SecretAuthorityStore) -> None:
    with pytest.raises(IstioAuthError, match="call it on a thread") as caught:
        store.load()
    assert caught.value.code is Code.INTERNAL
