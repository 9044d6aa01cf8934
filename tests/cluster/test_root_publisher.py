"""The trust bundle in every managed namespace, whatever happens to it there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from uuid import uuid4

import pytest

from ca.controller.label_selector import LabelSelector
from ca.controller.namespaces import NamespaceRules
from ca.controller.snapshot import MARK_LABEL
from ca.platform.kubernetes.api.client import KubernetesAPI
from ca.platform.kubernetes.api.connection import connected
from ca.platform.kubernetes.api.reflector import Reflector
from ca.platform.kubernetes.api.resources import CONFIG_MAPS, NAMESPACES
from ca.platform.kubernetes.events.recorder import EventRecorder
from ca.platform.kubernetes.roots.plan import Foreign, PublishedRoots, read_config_map
from ca.platform.kubernetes.roots.publisher import OUR_NAME, RootPublisher
from ca.platform.kubernetes.secrets.snapshots import read_namespace
from istio_auth.errors import MissingError
from istio_auth.system_clock import SystemClock
from tests.cluster.client import JSON, Client
from tests.cluster.control_plane import ControlPlane
from tests.cluster.waiting import eventually
from tests.fakes.waiting import until

MARK = "istio-ca"
CONFIG = {"istio.io/config": "true"}


class Cluster:
    """The namespaces of one test, with a publisher that manages them."""

    def __init__(self, api: KubernetesAPI, admin: Client) -> None:
        self.api = api
        self.admin = admin
        self.token = f"t-{uuid4().hex[:8]}"
        self.mark = f"{MARK}-{self.token}"
        self.roots = PublishedRoots(1, "roots 1\n")
        self.is_leading = True
        self.asked = 0  # how often somebody wanted to know
        self._made: list[str] = []

    async def namespace(self, name: str, *, managed: bool = True) -> str:
        """A new namespace; the whole name of it."""
        whole = f"{name}-{self.token}"
        self._made.append(whole)
        await self.admin.create_namespace(whole, labels=self.labels(managed=managed))
        return whole

    def labels(self, *, managed: bool) -> dict[str, str]:
        return {"managed-by-test": self.token if managed else "nobody"}

    async def find(self, namespace: str) -> JSON | None:
        return await self.admin.find(path(namespace))

    async def holds(self, namespace: str, pem: str | None = None) -> JSON:
        """The ConfigMap of a namespace, once it holds the roots."""
        wanted = self.roots.pem if pem is None else pem

        async def look() -> JSON | None:
            found = await self.find(namespace)
            return found if found and found.get("data", {}).get("root-cert.pem") == wanted else None

        return await eventually(look)

    def writes(self) -> int:
        return sum(
            count for (verb, resource), count in self.api.calls.items() if resource == "configmaps" and is_write(verb)
        )

    def _leads(self) -> bool:
        self.asked += 1
        return self.is_leading

    @asynccontextmanager
    async def publishing(self, *, resync: timedelta = timedelta(minutes=10)) -> AsyncIterator[RootPublisher]:
        """A publisher at work."""
        namespaces = Reflector(self.api, NAMESPACES, read_namespace)
        config_maps = Reflector(self.api, CONFIG_MAPS, read_config_map, selection=OUR_NAME)
        rules = NamespaceRules("istio-system", selector=LabelSelector.parse(f"managed-by-test={self.token}"))
        events = EventRecorder(self.api, instance="istio-ca-0", clock=SystemClock())
        publisher = RootPublisher(
            self.api,
            namespaces,
            config_maps,
            roots=lambda: self.roots,
            scope=rules.scope,
            mark=self.mark,
            clock=SystemClock(),
            events=events,
            leading=self._leads,
            resync=resync,
        )
        running = [asyncio.create_task(each.run()) for each in (namespaces, config_maps, events, publisher)]
        try:
            yield publisher
        finally:
            for task in running:
                task.cancel()
            await asyncio.wait(running)

    async def clean(self) -> None:
        for name in self._made:
            await self.admin.request("DELETE", f"/api/v1/namespaces/{name}")


def path(namespace: str) -> str:
    return f"/api/v1/namespaces/{namespace}/configmaps/istio-ca-root-cert"


def is_write(verb: str) -> bool:
    return verb in ("create", "update", "patch", "delete")


def publishes(publisher: RootPublisher, sequence: int) -> Callable[[], datetime | None]:
    return lambda: publisher.published(sequence)


@pytest.fixture
async def cluster(control_plane: ControlPlane, admin: Client) -> AsyncIterator[Cluster]:
    async with connected(control_plane.kubeconfig) as api:
        cluster = Cluster(api, admin)
        yield cluster
        await cluster.clean()


async def test_every_managed_namespace_gets_the_roots_also_those_that_come_later(cluster: Cluster) -> None:
    first, other = await cluster.namespace("first"), await cluster.namespace("other", managed=False)
    async with cluster.publishing() as publisher:
        made = await cluster.holds(first)
        assert made["metadata"]["labels"] == CONFIG | {MARK_LABEL: cluster.mark}
        await cluster.holds(await cluster.namespace("later"))
        await cluster.admin.patch(f"/api/v1/namespaces/{other}", {"metadata": {"labels": cluster.labels(managed=True)}})
        await cluster.holds(other)
        await until(publishes(publisher, 1))
        assert publisher.lacking == 0


async def test_what_is_not_managed_has_none_and_what_is_managed_no_more_has_ours_no_more(cluster: Cluster) -> None:
    ours, theirs = await cluster.namespace("ours"), await cluster.namespace("theirs", managed=False)
    body = {"metadata": {"name": "istio-ca-root-cert", "labels": CONFIG}, "data": {"root-cert.pem": "istiod's\n"}}
    await cluster.admin.create(f"/api/v1/namespaces/{theirs}/configmaps", body)
    async with cluster.publishing():
        await cluster.holds(ours)
        await cluster.admin.patch(f"/api/v1/namespaces/{ours}", {"metadata": {"labels": cluster.labels(managed=False)}})

        async def is_gone() -> bool:
            return await cluster.find(ours) is None

        await eventually(is_gone)
        assert (await cluster.holds(theirs, "istiod's\n"))["metadata"]["labels"] == CONFIG


async def test_what_was_changed_or_deleted_is_right_again_and_what_others_added_stays(cluster: Cluster) -> None:
    namespace = await cluster.namespace("shop")
    async with cluster.publishing():
        await cluster.holds(namespace)
        change = {"data": {"root-cert.pem": "bad", "note": "kept"}, "metadata": {"labels": {"istio.io/config": None}}}
        await cluster.admin.patch(path(namespace), change)
        repaired = await cluster.holds(namespace)
        assert repaired["data"]["note"] == "kept"
        assert repaired["metadata"]["labels"]["istio.io/config"] == "true"
        await cluster.admin.delete(path(namespace))
        assert (await cluster.holds(namespace))["metadata"]["uid"] != repaired["metadata"]["uid"]


async def test_one_that_somebody_made_immutable_keeps_no_new_bundle_away(cluster: Cluster) -> None:
    namespace = await cluster.namespace("shop")
    async with cluster.publishing() as publisher:
        await cluster.holds(namespace)
        await cluster.admin.patch(path(namespace), {"immutable": True})
        cluster.roots = PublishedRoots(2, "roots 1\nroots 2\n")
        publisher.changed()
        assert "immutable" not in await cluster.holds(namespace)
        await until(publishes(publisher, 2))


async def test_what_is_right_is_never_written_again_however_often_it_is_looked_at(cluster: Cluster) -> None:
    namespace = await cluster.namespace("shop")
    async with cluster.publishing() as publisher:
        made = await cluster.holds(namespace)
        await until(publishes(publisher, 1))
    cluster.api.calls.clear()
    async with cluster.publishing(resync=timedelta(milliseconds=10)) as publisher:  # another process, in effect
        await until(publishes(publisher, 1))
        await cluster.holds(await cluster.namespace("later"))  # and many a resync meanwhile
        await until(publishes(publisher, 1))
    assert cluster.writes() == 1
    assert (await cluster.holds(namespace))["metadata"]["resourceVersion"] == made["metadata"]["resourceVersion"]


async def test_a_new_bundle_reaches_every_namespace_and_only_then_counts_as_published(cluster: Cluster) -> None:
    names = [await cluster.namespace(f"n{number}") for number in range(5)]
    async with cluster.publishing() as publisher:
        await until(publishes(publisher, 1))
        cluster.api.calls.clear()
        cluster.roots = PublishedRoots(2, "roots 1\nroots 2\n")
        assert publisher.published(2) is None
        publisher.changed()
        await until(publishes(publisher, 2))
        for name in names:
            assert (await cluster.find(name) or {})["data"]["root-cert.pem"] == cluster.roots.pem
        assert cluster.writes() == len(names)
        assert publisher.published(3) is None


async def test_the_config_map_that_istiod_left_behind_gets_our_roots(cluster: Cluster) -> None:
    namespace = await cluster.namespace("shop")
    body = {"metadata": {"name": "istio-ca-root-cert", "labels": CONFIG}, "data": {"root-cert.pem": "istiod's\n"}}
    await cluster.admin.create(f"/api/v1/namespaces/{namespace}/configmaps", body)
    async with cluster.publishing():
        assert (await cluster.holds(namespace))["metadata"]["labels"][MARK_LABEL] == cluster.mark


async def test_the_config_map_of_another_ca_is_not_touched_and_an_event_says_so(cluster: Cluster) -> None:
    namespace, fine = await cluster.namespace("shop"), await cluster.namespace("fine")
    labels = CONFIG | {MARK_LABEL: "another"}
    body = {"metadata": {"name": "istio-ca-root-cert", "labels": labels}, "data": {"root-cert.pem": "theirs\n"}}
    made = await cluster.admin.create(f"/api/v1/namespaces/{namespace}/configmaps", body)
    async with cluster.publishing() as publisher:
        await cluster.holds(fine)
        await until(lambda: publisher.findings)
        assert publisher.findings == {namespace: Foreign.ANOTHER_CA}
        assert publisher.published(1) is None
        assert (await cluster.find(namespace)) == made
        await event_about(cluster, namespace, "another CA")
        await cluster.admin.delete(path(namespace))
        await cluster.holds(namespace)
        await until(publishes(publisher, 1))
        assert not publisher.findings


async def test_what_somebody_changes_back_three_times_in_a_minute_is_left_alone(cluster: Cluster) -> None:
    namespace, fine = await cluster.namespace("shop"), await cluster.namespace("fine")
    async with cluster.publishing(resync=timedelta(seconds=0.05)) as publisher:
        await cluster.holds(fine)
        for _ in range(3):
            await cluster.holds(namespace)
            await cluster.admin.patch(path(namespace), {"data": {"root-cert.pem": "theirs\n"}})
        await until(lambda: publisher.findings == {namespace: Foreign.CONTENDED})
        cluster.api.calls.clear()
        await cluster.holds(await cluster.namespace("later"))
        assert cluster.writes() == 1
        assert (await cluster.holds(namespace, "theirs\n"))["metadata"]["labels"][MARK_LABEL] == cluster.mark
        assert publisher.published(1) is None
        await event_about(cluster, namespace, "changing it back")
        await cluster.admin.patch(path(namespace), {"data": {"root-cert.pem": cluster.roots.pem}})  # they gave way
        await until(publishes(publisher, 1))
        assert not publisher.findings


async def test_new_bundles_in_quick_succession_are_no_contention(cluster: Cluster) -> None:
    namespace = await cluster.namespace("shop")
    async with cluster.publishing() as publisher:
        for sequence in range(2, 8):
            cluster.roots = PublishedRoots(sequence, f"roots {sequence}\n")
            publisher.changed()
            await cluster.holds(namespace)
            note = {"metadata": {"annotations": {"example.org/seen": f"{sequence}"}}}
            await cluster.admin.patch(path(namespace), note)  # harms nobody
        await until(publishes(publisher, 7))
        assert not publisher.findings


async def test_nothing_can_be_made_in_a_namespace_that_is_going_and_that_is_no_error(cluster: Cluster) -> None:
    namespace = await cluster.namespace("going")
    held = {"metadata": {"name": "held", "finalizers": ["example.org/hold"]}}
    await cluster.admin.create(f"/api/v1/namespaces/{namespace}/configmaps", held)
    await cluster.admin.delete(f"/api/v1/namespaces/{namespace}")
    with pytest.raises(MissingError, match="terminated"):
        await cluster.api.create(CONFIG_MAPS, {"metadata": {"name": "x"}}, namespace=namespace)
    async with cluster.publishing() as publisher:
        await cluster.holds(await cluster.namespace("fine"))
        await until(publishes(publisher, 1))  # nobody waits for the other
        assert await cluster.find(namespace) is None
    hold = f"/api/v1/namespaces/{namespace}/configmaps/held"
    await cluster.admin.patch(hold, {"metadata": {"finalizers": None}})


async def test_who_leads_no_more_writes_nothing(cluster: Cluster) -> None:
    namespace = await cluster.namespace("shop")
    cluster.is_leading = False
    async with cluster.publishing():
        await until(lambda: cluster.asked > 1)
        assert cluster.writes() == 0
        cluster.is_leading = True
        await cluster.holds(namespace)


async def test_one_namespace_that_can_not_be_filled_does_not_stop_the_others_and_is_filled_when_it_can(
    cluster: Cluster,
) -> None:
    bad = await cluster.namespace("bad")
    metadata = {"name": "istio-ca-root-cert", "finalizers": ["example.org/held"]}
    body = {"metadata": metadata, "immutable": True, "data": {"root-cert.pem": "frozen\n"}}
    await cluster.admin.create(f"/api/v1/namespaces/{bad}/configmaps", body)
    names = [await cluster.namespace(f"n{number}") for number in range(20)]
    async with cluster.publishing() as publisher:
        for name in names:
            await cluster.holds(name)
        assert publisher.published(1) is None
        await cluster.admin.patch(path(bad), {"metadata": {"finalizers": None}})
        await cluster.holds(bad)
        await until(publishes(publisher, 1))


async def test_a_namespace_made_anew_many_times_gets_the_roots_each_time(cluster: Cluster) -> None:
    async with cluster.publishing() as publisher:
        for _ in range(4):
            namespace = await cluster.namespace("again")
            await cluster.holds(namespace)
            await cluster.admin.delete(f"/api/v1/namespaces/{namespace}")

            async def is_gone(name: str = namespace) -> bool:
                return await cluster.admin.find(f"/api/v1/namespaces/{name}") is None

            await eventually(is_gone)
        assert not publisher.findings


async def event_about(cluster: Cluster, namespace: str, words: str) -> None:
    async def look() -> bool:
        events = await cluster.admin.list(f"/apis/events.k8s.io/v1/namespaces/{namespace}/events")
        return any(
            event["reason"] == "RootsNotPublished"
            and words in event["note"]
            and event["regarding"]["name"] == "istio-ca-root-cert"
            for event in events
        )

    await eventually(look)


async def test_while_the_api_server_is_away_nothing_counts_as_published_and_afterwards_all_goes_on(
    own_control_plane: ControlPlane,
) -> None:
    async with own_control_plane.admin() as admin, connected(own_control_plane.kubeconfig) as api:
        cluster = Cluster(api, admin)
        namespace = await cluster.namespace("shop")
        async with cluster.publishing() as publisher:
            await until(publishes(publisher, 1))
            await own_control_plane.stop_api_server()
            await until(lambda: publisher.published(1) is None)
            cluster.roots = PublishedRoots(2, "roots 2\n")
            publisher.changed()
            await own_control_plane.start_api_server()
            await cluster.holds(namespace)
            await until(publishes(publisher, 2))
