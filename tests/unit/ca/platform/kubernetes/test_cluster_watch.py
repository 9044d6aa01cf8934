"""ClusterWatch: what is known of pods and service accounts, and for how long it counts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta

import pytest

from ca.platform.kubernetes.api.client import KubernetesAPI
from ca.platform.kubernetes.api.objects import Object
from ca.platform.kubernetes.api.resources import NAMESPACES, PODS, SERVICE_ACCOUNTS
from ca.platform.kubernetes.cluster_watch import ClusterWatch, read_pod
from istio_auth.strict_json import JSON
from tests.fakes.api_server import FakeAPIServer
from tests.fakes.waiting import until

STALE_AFTER = timedelta(minutes=5)


def put_pod(server: FakeAPIServer, name: str, *, uid: str, phase: str = "Running", **metadata: JSON) -> None:
    server.put(
        PODS,
        name,
        namespace="shop",
        metadata={"uid": uid, **metadata},
        spec={"serviceAccountName": "web", "nodeName": "node-1"},
        status={"phase": phase},
    )


class Watch:
    """A watch that runs."""

    def __init__(self, api: KubernetesAPI) -> None:
        self.cluster = ClusterWatch(api, stale_after=STALE_AFTER)

    @property
    def pods(self) -> set[str]:
        return {pod.uid for pod in self.cluster.pods.facts.values()}

    def on_node(self) -> bool:
        return self.cluster.pod_index.on_node("node-1", "shop", "web")

    def live(self) -> tuple[bool, bool]:
        return self.cluster.pod_index.live, self.cluster.account_view.live

    def grow_old(self, by: timedelta) -> None:
        for reflector in (self.cluster.pods, self.cluster.accounts):
            reflector.heard -= by.total_seconds()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        tasks = [asyncio.ensure_future(work) for work in self.cluster.tasks().values()]
        try:
            yield
            assert not any(task.done() for task in tasks)
        finally:
            for task in tasks:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task


@pytest.fixture
async def watch(api: KubernetesAPI, server: FakeAPIServer) -> AsyncIterator[Watch]:
    """One that knows the pod web-0 and the service account web."""
    put_pod(server, "web-0", uid="pod-1")
    server.put(SERVICE_ACCOUNTS, "web", namespace="shop", metadata={"uid": "sa-1"})
    server.put(NAMESPACES, "shop", metadata={"labels": {"team": "shop"}})
    watch = Watch(api)
    async with watch.running():
        await until(lambda: server.open == 3)
        yield watch


async def test_pods_service_accounts_and_namespaces_are_known(watch: Watch) -> None:
    pod = watch.cluster.pod_index.pod("pod-1")
    assert pod is not None
    assert (pod.namespace, pod.name, pod.service_account, pod.node, pod.deleted) == (
        "shop",
        "web-0",
        "web",
        "node-1",
        False,
    )
    assert watch.on_node()
    assert watch.cluster.account_view.uid("shop", "web") == "sa-1"
    assert watch.cluster.account_view.uid("bank", "web") is None
    assert {key.name: namespace.labels for key, namespace in watch.cluster.namespaces.facts.items()} == {
        "shop": {"team": "shop"}
    }


async def test_a_pod_that_goes_is_unknown_and_counts_for_its_node_no_more(watch: Watch, server: FakeAPIServer) -> None:
    server.remove(PODS, "web-0", namespace="shop")
    await until(lambda: not watch.pods)
    assert watch.cluster.pod_index.pod("pod-1") is None
    assert not watch.on_node()


async def test_a_pod_that_went_while_nobody_looked_is_unknown_too(watch: Watch, server: FakeAPIServer) -> None:
    server.remove(PODS, "web-0", namespace="shop")
    server.expire()
    await until(lambda: watch.cluster.pods.lists == 2)
    assert watch.cluster.pod_index.pod("pod-1") is None
    assert not watch.on_node()


async def test_a_pod_that_was_made_anew_under_its_name_is_another_one(watch: Watch, server: FakeAPIServer) -> None:
    put_pod(server, "web-0", uid="pod-2")
    await until(lambda: watch.pods == {"pod-2"})
    assert watch.cluster.pod_index.pod("pod-1") is None
    assert watch.cluster.pod_index.pod("pod-2")
    assert watch.on_node()


async def test_pods_that_have_failed_are_not_asked_for(watch: Watch, server: FakeAPIServer) -> None:
    put_pod(server, "failed", uid="pod-2", phase="Failed")
    put_pod(server, "next", uid="pod-3")
    await until(lambda: "pod-3" in watch.pods)
    assert watch.pods == {"pod-1", "pod-3"}


async def test_what_is_being_deleted_is_known_as_such(watch: Watch, server: FakeAPIServer) -> None:
    put_pod(server, "web-0", uid="pod-1", deletionTimestamp="2030-01-01T12:00:00Z")
    gone: Object = {"uid": "sa-1", "deletionTimestamp": "2030-01-01T12:00:00Z"}
    server.put(SERVICE_ACCOUNTS, "web", namespace="shop", metadata=gone)
    await until(lambda: watch.cluster.account_view.uid("shop", "web") is None)
    await until(lambda: (pod := watch.cluster.pod_index.pod("pod-1")) and pod.deleted)
    assert watch.on_node()  # it runs until its node has ended it


async def test_nothing_is_live_before_it_was_listed(api: KubernetesAPI, server: FakeAPIServer) -> None:
    watch = Watch(api)
    assert watch.live() == (False, False)
    go_on = server.hold(lambda asked: asked.path == PODS.path())
    async with watch.running():
        await until(lambda: watch.live() == (False, True))
        go_on.set()
        await until(lambda: watch.live() == (True, True))


async def test_the_views_are_live_for_a_while_after_the_api_server_went(watch: Watch, server: FakeAPIServer) -> None:
    server.hold(lambda _: True)
    server.cut()
    await until(lambda: watch.cluster.pods.fault and watch.cluster.accounts.fault)
    watch.grow_old(STALE_AFTER - timedelta(seconds=60))
    assert watch.live() == (True, True)
    watch.grow_old(timedelta(seconds=60))
    assert watch.live() == (False, False)
    assert watch.cluster.pod_index.pod("pod-1")  # it may be there: only, nobody can tell


@pytest.mark.parametrize("item", [{}, {"metadata": None, "spec": [], "status": "x"}, {"metadata": {"uid": 7}}])
def test_a_pod_without_sense_is_nobodys(item: Object) -> None:
    pod = read_pod(item)
    assert (pod.uid, pod.namespace, pod.name, pod.service_account, pod.node) == ("", "", "", "", "")
    assert (pod.phase, pod.deleted) == ("Pending", False)
