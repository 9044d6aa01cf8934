"""PodIndex: found by UID, counted by node, whatever comes in whatever order; and small."""

from __future__ import annotations

import gc
import tracemalloc
from dataclasses import replace

import pytest

from ca.platform.kubernetes.callers.pods import PodIndex
from ca.platform.kubernetes.facts import PodFact

WEB = PodFact("pod-1", "default", "web-0", "web", "node-1", "Running")


def holding(*pods: PodFact) -> PodIndex:
    index = PodIndex(lambda: True)
    for pod in pods:
        index.put(pod)
    return index


def test_a_pod_is_found_by_its_uid_and_counts_for_its_node() -> None:
    index = holding(WEB)
    assert index.pod("pod-1") == WEB
    assert index.on_node("node-1", "default", "web")
    assert index.pod("pod-2") is None
    assert not index.on_node("node-2", "default", "web")
    assert not index.on_node("node-1", "other", "web")
    assert not index.on_node("node-1", "default", "other")


@pytest.mark.parametrize(
    ("phase", "counts"), [("Pending", 1), ("Running", 1), ("Succeeded", 1), ("Failed", 0), ("", 0)]
)
def test_a_pod_counts_by_its_phase(phase: str, counts: int) -> None:
    index = holding(replace(WEB, phase=phase))
    assert index.on_node("node-1", "default", "web") == bool(counts)
    assert index.pod("pod-1") is not None


def test_a_pod_counts_from_when_it_is_scheduled_until_it_fails() -> None:
    index = holding(replace(WEB, node="", phase="Pending"))
    assert not index.on_node("node-1", "default", "web")
    assert not index.on_node("", "default", "web")
    index.put(replace(WEB, phase="Pending"))
    assert index.on_node("node-1", "default", "web")
    index.put(replace(WEB, phase="Failed"))
    assert not index.on_node("node-1", "default", "web")


def test_a_pod_that_is_being_deleted_counts_until_it_is_gone() -> None:
    index = holding(replace(WEB, deleted=True))
    assert index.on_node("node-1", "default", "web")
    index.remove("default", "web-0")
    assert not index.on_node("node-1", "default", "web")
    assert index.pod("pod-1") is None
    index.remove("default", "web-0")
    assert len(index) == 0


def test_one_of_two_pods_is_enough() -> None:
    index = holding(WEB, replace(WEB, uid="pod-2", name="web-1"))
    index.remove("default", "web-0")
    assert index.on_node("node-1", "default", "web")
    index.remove("default", "web-1")
    assert not index.on_node("node-1", "default", "web")


def test_the_same_pod_put_again_counts_once() -> None:
    index = holding(WEB, WEB, replace(WEB, deleted=True))
    assert len(index) == 1
    index.remove("default", "web-0")
    assert not index.on_node("node-1", "default", "web")


def test_a_pod_made_anew_under_the_same_name_takes_the_place_of_the_old_one() -> None:
    index = holding(WEB, replace(WEB, uid="pod-2", node="node-2"))
    assert index.pod("pod-1") is None
    assert index.pod("pod-2") is not None
    assert not index.on_node("node-1", "default", "web")
    assert index.on_node("node-2", "default", "web")


def test_pods_of_one_name_in_two_namespaces_are_two() -> None:
    index = holding(WEB, replace(WEB, uid="pod-2", namespace="other"))
    index.remove("other", "web-0")
    assert index.pod("pod-1") == WEB
    assert index.on_node("node-1", "default", "web")


def test_it_is_as_live_as_what_feeds_it() -> None:
    live = [False]
    index = PodIndex(lambda: live[0])
    assert not index.live
    live[0] = True
    assert index.live


def test_ten_thousand_pods_take_little_memory_and_leave_none_behind() -> None:
    pods = [PodFact(f"uid-{n}", "default", f"web-{n}", f"web-{n}", f"node-{n % 100}", "Running") for n in range(10_000)]
    gc.collect()
    tracemalloc.start()
    index = holding(*pods)
    held, _ = tracemalloc.get_traced_memory()
    for pod in pods:
        index.remove(pod.namespace, pod.name)
    tracemalloc.stop()
    assert held < 6 << 20
    assert (len(index), index._by_uid, index._counts) == (0, {}, {})


def test_the_accounts_on_a_node_are_those_of_its_pods() -> None:
    index = holding(WEB, replace(WEB, uid="pod-2", name="web-1"), replace(WEB, uid="db", name="db", namespace="shop"))
    index.put(replace(WEB, uid="far", name="far", service_account="far", node="node-2"))
    assert index.accounts_on("node-1") == {("default", "web"), ("shop", "web")}
    assert index.accounts_on("node-2") == {("default", "far")}
    assert index.accounts_on("node-3") == set()
    index.remove("shop", "db")
    assert index.accounts_on("node-1") == {("default", "web")}


def test_who_follows_a_node_hears_when_an_account_comes_or_leaves_and_of_nothing_else() -> None:
    index = holding()
    heard: list[set[tuple[str, str]]] = []
    leave = index.follow("node-1", lambda: heard.append(set(index.accounts_on("node-1"))))
    second = replace(WEB, uid="pod-2", name="web-1")
    index.put(replace(WEB, node="", phase="Pending"))  # not scheduled yet
    assert heard == []
    index.put(WEB)
    assert heard == [{("default", "web")}]
    index.put(replace(WEB, phase="Succeeded"))  # counts as before
    index.put(second)  # of the same account
    index.put(replace(WEB, uid="far", name="far", node="node-2"))
    index.remove("default", "web-0")
    assert len(heard) == 1
    index.put(replace(second, uid="pod-3", service_account="db"))  # one name, another pod
    assert heard[1:] == [set(), {("default", "db")}]
    index.put(replace(second, uid="pod-3", service_account="db", node="node-2"))
    assert heard[3:] == [set()]
    leave()
    index.put(WEB)
    assert len(heard) == 4
    assert not index._followers


def test_two_that_follow_one_node_are_told_until_each_leaves() -> None:
    index = holding()
    first: list[int] = []
    second: list[int] = []
    leave_first = index.follow("node-1", lambda: first.append(1))
    leave_second = index.follow("node-1", lambda: second.append(1))
    index.put(WEB)
    leave_first()
    index.remove("default", "web-0")
    assert (first, second) == ([1], [1, 1])
    leave_second()
    leave_second()  # once more does no harm
    assert not index._followers
