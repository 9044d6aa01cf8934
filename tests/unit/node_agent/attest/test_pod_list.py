"""What the kubelet tells of a pod becomes its selectors; what can not be used is not taken for something else."""

from __future__ import annotations

from typing import Any

import pytest

from istio_auth.errors import MalformedError, NotReady
from istio_auth.registration import Selector
from istio_auth.strict_json import JSON
from node_agent.attest.pod import Place
from node_agent.attest.pod_list import PodList
from tests.fakes.pod_lister import CONTAINER, UID, pod

OTHER = "a2830d0d-b0f0-4ff0-81b5-0ee4e299cf80"
HERE = Place(UID, CONTAINER)


def listed(*items: JSON) -> PodList:
    return PodList.of({"kind": "PodList", "items": list(items)})


def seen(pods: PodList, place: Place = HERE, *, containers: bool = False) -> set[str]:
    return set(map(str, pods.selectors(place, containers=containers)))


def test_a_pod_is_known_by_namespace_account_node_name_uid_and_labels() -> None:
    labels = {"app": "web", "app.kubernetes.io/version": "1.2_x", "empty": ""}
    found = seen(listed(pod(OTHER, "db-0", account="db"), pod(labels=labels)))
    assert found == {
        "k8s:ns:shop",
        "k8s:sa:web",
        "k8s:node:node-1",
        "k8s:pod:web-0",
        f"k8s:pod-uid:{UID}",
        "k8s:label:app=web",
        "k8s:label:app.kubernetes.io/version=1.2_x",
        "k8s:label:empty=",
    }
    assert all(Selector.parse(each) for each in found)


def test_a_static_pod_has_no_service_account() -> None:
    assert not any(each.startswith("k8s:sa:") for each in seen(listed(pod(account=""))))


def test_a_container_is_told_from_the_others_of_its_pod_where_that_is_asked_for() -> None:
    pods = listed(pod(containers={CONTAINER: "app", "f" * 64: "proxy"}))
    assert "k8s:container:app" in seen(pods, containers=True)
    assert "k8s:container:proxy" in seen(pods, Place(UID, "f" * 64), containers=True)
    assert not any(each.startswith("k8s:container") for each in seen(pods))
    assert seen(pods, Place(UID, None), containers=True) == seen(pods)


@pytest.mark.parametrize("kind", ["initContainerStatuses", "ephemeralContainerStatuses"])
def test_init_and_ephemeral_containers_are_known_as_well(kind: str) -> None:
    entry: dict[str, Any] = pod(containers={CONTAINER: "setup"})
    entry["status"][kind] = entry["status"].pop("containerStatuses")
    assert "k8s:container:setup" in seen(listed(entry), containers=True)


def test_a_container_that_does_not_run_yet_is_waited_for() -> None:
    entry: dict[str, Any] = pod(containers={CONTAINER: "app"})
    entry["status"]["containerStatuses"][0]["containerID"] = ""
    with pytest.raises(NotReady, match=f"does not tell that pod {UID} container {CONTAINER} runs"):
        seen(listed(entry), containers=True)


def test_by_a_container_alone_its_one_pod_is_found() -> None:
    place = Place(None, CONTAINER)
    pods = [pod(OTHER, "db-0"), pod(containers={CONTAINER: "app"})]
    assert "k8s:pod:web-0" in seen(listed(*pods), place)
    with pytest.raises(NotReady, match="tells of 0 pods with container"):
        seen(listed(pods[0]), place)
    with pytest.raises(NotReady, match="tells of 2 pods with container"):
        seen(listed(*pods, pod("x", "web-1", containers={CONTAINER: "app"})), place)


def test_a_pod_that_is_not_told_of_is_nobody_yet() -> None:
    with pytest.raises(NotReady, match=f"does not tell of pod {UID}"):
        seen(listed(pod(OTHER)))
    with pytest.raises(NotReady, match=f"does not tell of pod {UID}"):
        seen(PodList.of({"kind": "PodList", "items": None}))


def test_two_pods_with_one_uid_are_neither_and_hide_no_third() -> None:
    pods = listed(pod(), pod(name="other", namespace="bank"), pod(OTHER, "db-0"))
    with pytest.raises(NotReady, match="can not be used: two pods have it"):
        seen(pods)
    assert "k8s:pod:db-0" in seen(pods, Place(OTHER, None))


@pytest.mark.parametrize(
    ("where", "key", "value"),
    [
        ("metadata", "namespace", "Shop"),
        ("metadata", "namespace", None),
        ("metadata", "name", ["web"]),
        ("metadata", "labels", {"app": 1}),
        ("metadata", "labels", {"app=db,x": "web"}),
        ("metadata", "labels", {"app": "web\nk8s:sa:root"}),
        ("spec", "nodeName", ""),
        ("spec", "serviceAccountName", "web/../db"),
    ],
)
def test_an_entry_that_no_api_server_takes_is_of_no_use_and_hides_no_other(where: str, key: str, value: object) -> None:
    entry: dict[str, Any] = pod()
    entry[where][key] = value
    pods = listed(entry, pod(OTHER, "db-0"), {}, None, "pod")
    with pytest.raises(NotReady, match="can not be used"):
        seen(pods)
    assert "k8s:pod:db-0" in seen(pods, Place(OTHER, None))


@pytest.mark.parametrize("document", [None, [], {}, {"kind": "Status"}, {"kind": "PodList", "items": {"a": 1}}])
def test_what_is_no_list_of_pods_is_refused(document: JSON) -> None:
    with pytest.raises(MalformedError, match="no PodList"):
        PodList.of(document)
