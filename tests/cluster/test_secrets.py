"""Service accounts to secrets at a real API server: made, kept, repaired, deleted, and what is not ours untouched."""

from __future__ import annotations

import asyncio
import base64
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest

from ca.audit import Audit
from ca.authority.authority import Authority, open_authority
from ca.controller.action import Kind, Reason
from ca.controller.loop import Pace, SecretController
from ca.controller.namespaces import ENV_LABEL, OVERRIDE_LABEL, NamespaceRules
from ca.controller.pairs import PairMaker
from ca.controller.report import Reports
from ca.controller.settings import Settings
from ca.controller.snapshot import ACCOUNT_ANNOTATION, MARK_LABEL, SECRET_TYPE, AccountKey, WorkloadSecret
from ca.controller.tally import Tally
from ca.issuance_log import FileIssuanceLog
from ca.issuer import Issuer, ReservedNames
from ca.metrics import Counts
from ca.platform.kubernetes.api.client import KubernetesAPI, Selection
from ca.platform.kubernetes.api.connection import connected
from ca.platform.kubernetes.api.reflector import Reflector
from ca.platform.kubernetes.api.resources import NAMESPACES, SECRETS, SERVICE_ACCOUNTS
from ca.platform.kubernetes.events.recorder import EventRecorder
from ca.platform.kubernetes.roots.authority_store import SecretAuthorityStore
from ca.platform.kubernetes.secrets.account_events import AccountEvents
from ca.platform.kubernetes.secrets.secrets import WorkloadSecrets
from ca.platform.kubernetes.secrets.snapshots import ClusterSnapshots, read_account, read_namespace
from ca.profile import IssuanceProfile
from istio_auth.spiffe_id import TrustDomain
from istio_auth.svid import X509SVID
from istio_auth.system_clock import SystemClock
from istio_auth.verify import verify_chain
from tests.cluster.client import JSON, Client
from tests.cluster.control_plane import ControlPlane
from tests.cluster.waiting import appears, eventually, vanishes
from tests.fakes.waiting import until

LOCAL = TrustDomain("cluster.local")
WRITES = ("create", "patch", "update", "delete")


@dataclass
class Running:
    """A controller at work on the namespaces of one test."""

    controller: SecretController
    authority: Authority
    api: KubernetesAPI
    tally: Tally
    snapshots: ClusterSnapshots

    def writes(self) -> int:
        """How often the API server was asked to change a secret."""
        return sum(self.api.calls[verb, "secrets"] for verb in WRITES)

    async def quiet(self) -> None:
        """Return when there is nothing left to do."""
        await until(lambda: self.controller.idle, within=180)


@dataclass
class Cluster:
    """The shared control plane, and the settings by which a controller keeps to the namespaces of one test."""

    plane: ControlPlane
    folder: Path
    namespace: str

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Running]:
        """A controller with all its parts; a second one in a test is a restart."""
        clock = SystemClock()
        async with connected(self.plane.kubeconfig) as api:
            store = SecretAuthorityStore(api, self.namespace, LOCAL)
            authority = await asyncio.to_thread(open_authority, store, LOCAL, clock)
            log = FileIssuanceLog(self.folder / "issuance.log")
            issuer = Issuer(authority, IssuanceProfile(), log, clock, ReservedNames.of(LOCAL), threads=1)
            settings = Settings(self.namespace, NamespaceRules(self.namespace, enable_by_default=False))
            secrets = WorkloadSecrets(api, settings.mark, lambda: authority.bundle)
            snapshots = ClusterSnapshots.over(api, secrets)
            recorder = EventRecorder(api, instance="istio-ca-0", clock=clock)
            tally = Tally()
            before = sum(api.calls[verb, "secrets"] for verb in WRITES)
            api.calls.subtract({("create", "secrets"): before})  # the root's own
            controller = SecretController(
                snapshots,
                secrets,
                authority,
                pairs=PairMaker(issuer, authority, Audit(Counts()), tally, ttl=settings.ttl),
                reports=Reports(AccountEvents(recorder)),
                settings=settings,
                clock=clock,
                leading=lambda: True,
                tally=tally,
                pace=Pace(first_retry=timedelta(milliseconds=100)),
            )
            tasks = [asyncio.create_task(each) for each in (snapshots.run(), controller.run(), recorder.run())]
            try:
                running = Running(controller, authority, api, tally, snapshots)
                await running.quiet()
                yield running
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                await issuer.close()
                log.close()


@pytest.fixture
async def managed(admin: Client, namespace: str) -> str:
    await label(admin, namespace, {OVERRIDE_LABEL: "true"})
    return namespace


@pytest.fixture
def cluster(control_plane: ControlPlane, namespace: str, tmp_path: Path) -> Cluster:
    return Cluster(control_plane, tmp_path, namespace)


def secret_path(namespace: str, name: str = "web") -> str:
    return f"/api/v1/namespaces/{namespace}/secrets/istio.{name}"


def account_path(namespace: str, name: str = "web") -> str:
    return f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}"


async def label(admin: Client, namespace: str, labels: dict[str, str | None]) -> None:
    await admin.patch(f"/api/v1/namespaces/{namespace}", {"metadata": {"labels": labels}})


def data(secret: JSON) -> dict[str, bytes]:
    return {name: base64.b64decode(value) for name, value in secret["data"].items()}


def check(secret: JSON, running: Running) -> X509SVID:
    """What is in a secret, which must be of use to its workload."""
    found = data(secret)
    svid = X509SVID.parse(found["cert-chain.pem"], found["key.pem"])
    assert found["root-cert.pem"] == running.authority.root_pem()
    assert verify_chain(svid.chain, running.authority.bundle, SystemClock().now()) == svid.id
    name = secret["metadata"]["name"].removeprefix("istio.")
    assert str(svid.id) == f"spiffe://cluster.local/ns/{secret['metadata']['namespace']}/sa/{name}"
    return svid


async def events(admin: Client, namespace: str, uid: str) -> Sequence[JSON]:
    return await admin.list(f"/api/v1/namespaces/{namespace}/events", fieldSelector=f"involvedObject.uid={uid}")


async def test_a_service_account_gets_a_secret_that_openssl_verifies_in_citadels_form(
    cluster: Cluster, admin: Client, managed: str, tmp_path: Path
) -> None:
    async with cluster.running() as running:
        account = await admin.create_service_account(managed, "web")
        secret = await appears(admin, secret_path(managed))
        svid = check(secret, running)
    assert secret["type"] == SECRET_TYPE == "istio.io/key-and-cert"
    assert set(secret["data"]) == {"cert-chain.pem", "key.pem", "root-cert.pem"}
    assert secret["metadata"]["annotations"] == {ACCOUNT_ANNOTATION: "web"}
    assert secret["metadata"]["labels"] == {MARK_LABEL: managed}
    uid = account["metadata"]["uid"]
    assert secret["metadata"]["ownerReferences"] == [
        {"apiVersion": "v1", "kind": "ServiceAccount", "name": "web", "uid": uid}
    ]
    for name, content in data(secret).items():
        (tmp_path / name).write_bytes(content)
    command = ("openssl", "verify", "-CAfile", "root-cert.pem", "cert-chain.pem")
    done = await asyncio.to_thread(subprocess.run, command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout == "cert-chain.pem: OK\n", done.stderr
    assert svid.not_after > SystemClock().now() + timedelta(hours=23)


async def test_a_secret_that_somebody_deletes_comes_back_with_a_new_key(
    cluster: Cluster, admin: Client, managed: str
) -> None:
    await admin.create_service_account(managed, "web")
    async with cluster.running() as running:
        first = await appears(admin, secret_path(managed))
        await admin.delete(secret_path(managed))
        second = await appears(admin, secret_path(managed))
        assert second["metadata"]["uid"] != first["metadata"]["uid"]
        assert check(second, running).leaf != check(first, running).leaf


async def test_the_secret_goes_with_its_service_account_and_comes_anew_with_another_of_that_name(
    cluster: Cluster, admin: Client, managed: str
) -> None:
    await admin.create_service_account(managed, "web")
    async with cluster.running() as running:
        first = await appears(admin, secret_path(managed))
        await admin.delete(account_path(managed))
        await vanishes(admin, secret_path(managed))
        for _ in range(3):  # made anew at once, before anybody could look
            account = await admin.create_service_account(managed, "web")
            await admin.delete(account_path(managed))
        account = await admin.create_service_account(managed, "web")

        async def right() -> JSON | None:
            secret = await admin.find(secret_path(managed))
            owners = [] if secret is None else [owner["uid"] for owner in secret["metadata"]["ownerReferences"]]
            return secret if owners == [account["metadata"]["uid"]] else None

        last = await eventually(right)
        assert check(last, running).leaf != check(first, running).leaf


@pytest.mark.parametrize("part", ["key.pem", "cert-chain.pem", "root-cert.pem"])
async def test_a_part_that_somebody_spoils_is_repaired_and_what_others_added_stays(
    cluster: Cluster, admin: Client, managed: str, part: str
) -> None:
    await admin.create_service_account(managed, "web")
    async with cluster.running() as running:
        await appears(admin, secret_path(managed))
        theirs = {"annotations": {"example.com/note": "kept"}, "labels": {"team": "shop"}}
        spoiled = {part: base64.b64encode(b"spoiled").decode(), "extra.pem": base64.b64encode(b"kept").decode()}
        await admin.patch(secret_path(managed), {"metadata": theirs, "data": spoiled})

        async def repaired() -> JSON | None:
            secret = await admin.get(secret_path(managed))
            return secret if data(secret)[part] != b"spoiled" else None

        secret = await eventually(repaired)
        check(secret, running)
        assert data(secret)["extra.pem"] == b"kept"
        assert secret["metadata"]["annotations"]["example.com/note"] == "kept"
        assert secret["metadata"]["labels"]["team"] == "shop"


async def test_a_mark_that_is_removed_from_a_secret_comes_back_and_the_key_stays(
    cluster: Cluster, admin: Client, managed: str
) -> None:
    await admin.create_service_account(managed, "web")
    async with cluster.running() as running:
        first = await appears(admin, secret_path(managed))
        await admin.patch(secret_path(managed), {"metadata": {"labels": None, "ownerReferences": None}})

        async def marked() -> JSON | None:
            secret = await admin.get(secret_path(managed))
            return secret if secret["metadata"].get("labels") else None

        secret = await eventually(marked)
        assert secret["data"] == first["data"]
        assert secret["metadata"]["ownerReferences"] == first["metadata"]["ownerReferences"]
        await running.quiet()
        assert running.tally.written[Kind.UPDATE, Reason.METADATA_CHANGED] == 1
        assert not [kind for kind, _ in running.tally.written if kind in (Kind.RENEW, Kind.REPAIR)]


async def test_a_secret_of_another_type_is_never_touched_and_an_event_says_so_until_it_is_out_of_the_way(
    cluster: Cluster, admin: Client, managed: str
) -> None:
    body: JSON = {"metadata": {"name": "istio.web"}, "type": "Opaque", "stringData": {"password": "theirs"}}
    theirs = await admin.create(f"/api/v1/namespaces/{managed}/secrets", body)
    account = await admin.create_service_account(managed, "web")
    async with cluster.running():
        (event,) = await eventually(lambda: events(admin, managed, account["metadata"]["uid"]))
        assert (event["reason"], event["type"]) == ("ForeignSecret", "Warning")
        assert "Opaque" in event["message"]
        assert await admin.get(secret_path(managed)) == theirs
        await admin.delete(secret_path(managed))
        await admin.patch(account_path(managed), {"metadata": {"annotations": {"look": "again"}}})
    async with cluster.running() as running:
        check(await appears(admin, secret_path(managed)), running)


async def test_namespaces_are_managed_by_their_labels_and_filled_as_soon_as_they_are(
    cluster: Cluster, admin: Client, namespace: str
) -> None:
    other = f"{namespace}-other"
    await admin.create_namespace(other, labels={ENV_LABEL: namespace})
    for name in (namespace, other):
        await admin.create_service_account(name, "web")
    async with cluster.running() as running:
        check(await appears(admin, secret_path(other)), running)
        assert await admin.find(secret_path(namespace)) is None
        await label(admin, namespace, {OVERRIDE_LABEL: "true"})
        secret = await appears(admin, secret_path(namespace))
        await label(admin, namespace, {OVERRIDE_LABEL: "false"})
        await until(lambda: is_left_alone(running, namespace))  # each kind of object is watched by itself
        await admin.create_service_account(namespace, "late")
        await admin.create_service_account(other, "late")
        await appears(admin, secret_path(other, "late"))
        assert await admin.find(secret_path(namespace, "late")) is None
        assert await admin.get(secret_path(namespace)) == secret  # what is good stays until it is due
    await admin.delete(f"/api/v1/namespaces/{other}")


def is_left_alone(running: Running, namespace: str) -> bool:
    known = running.snapshots.namespace(namespace)
    return known is not None and known.labels.get(OVERRIDE_LABEL) == "false"


async def test_a_namespace_that_is_deleted_in_the_middle_troubles_nobody_else(
    cluster: Cluster, admin: Client, managed: str
) -> None:
    doomed = f"{managed}-doomed"
    await admin.create_namespace(doomed, labels={OVERRIDE_LABEL: "true"})
    async with cluster.running() as running:
        for number in range(10):
            await admin.create_service_account(doomed, f"web-{number}")
        await admin.delete(f"/api/v1/namespaces/{doomed}")
        await admin.create_service_account(managed, "web")
        check(await appears(admin, secret_path(managed)), running)
        await vanishes(admin, f"/api/v1/namespaces/{doomed}")
        await running.quiet()
        assert all(not standing.failing for standing in running.controller.present().standing())


async def test_what_was_watched_for_others_before_is_there_from_the_beginning(
    cluster: Cluster, admin: Client, managed: str
) -> None:
    await admin.create_service_account(managed, "web")
    async with connected(cluster.plane.kubeconfig) as api:
        accounts = Reflector(api, SERVICE_ACCOUNTS, read_account, selection=Selection(managed))
        namespaces = Reflector(api, NAMESPACES, read_namespace)
        secrets = Reflector[WorkloadSecret](api, SECRETS, lambda _: None, selection=Selection(managed))
        tasks = [asyncio.create_task(each.run()) for each in (accounts, namespaces, secrets)]
        for each in (accounts, namespaces, secrets):
            await each.until_synced()
        snapshots = ClusterSnapshots(accounts, namespaces, secrets)
        assert (managed, "web") in set(snapshots.keys())
        told: list[AccountKey] = []
        end = snapshots.subscribe(told.append)
        await admin.patch(f"/api/v1/namespaces/{managed}", {"metadata": {"annotations": {"of": "no interest"}}})
        await label(admin, managed, {OVERRIDE_LABEL: "false"})
        await until(lambda: (managed, "web") in told)
        assert told.count((managed, "web")) == 1
        end()
        await admin.delete(account_path(managed))
        await until(lambda: (managed, "web") not in set(snapshots.keys()))
        assert told.count((managed, "web")) == 1
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_five_hundred_service_accounts_at_once_get_their_secrets_for_one_write_each_and_a_restart_writes_nothing(
    cluster: Cluster, admin: Client, managed: str
) -> None:
    await appears(admin, account_path(managed, "default"))
    names = [f"web-{number}" for number in range(500)]
    async with cluster.running() as running:
        gate = asyncio.Semaphore(20)

        async def create(name: str) -> None:
            async with gate:
                await admin.create_service_account(managed, name)

        await asyncio.gather(*map(create, names))
        wanted = {f"istio.{name}" for name in (*names, "default")}

        await until(lambda: running.tally.written.total() == 501, within=300)
        await running.quiet()
        secrets = await admin.list(f"/api/v1/namespaces/{managed}/secrets", fieldSelector=f"type={SECRET_TYPE}")
        assert {secret["metadata"]["name"] for secret in secrets} == wanted
        for secret in secrets:
            check(secret, running)
        assert running.writes() == 501
        assert running.api.calls["get", "secrets"] <= 2  # of the root
    async with cluster.running() as running:
        assert running.writes() == 0
        assert len(running.controller.present().standing()) == 501
        assert running.tally.written.total() == 0
