"""What the kubelet says of its pods (`GET /pods`, a `v1.PodList`), as far as selectors come of it. No I/O.

    k8s:ns:shop    k8s:sa:web    k8s:node:node-1    k8s:pod:web-0    k8s:pod-uid:<uid>    k8s:label:app=web
    k8s:container:app

An entry that can not be used hides no other one. It is remembered with the reason, so that its pod is not taken for one
that is not there. The UID is the entry's own, as the pod's control group has it: the kubelet shows a static pod as it
read it, and not the mirror that the API server shows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from istio_auth.errors import ConfigurationError, MalformedError, NotReady
from istio_auth.registration import Selector
from istio_auth.strict_json import JSON
from node_agent.attest.pod import Place

_STATUSES = ("containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses")


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod of this node.

    Args:
        selectors: what it is known by.
        containers: what its containers that run are known by besides, by their ids.
    """

    selectors: frozenset[Selector]
    containers: Mapping[str, Selector]


class NotListed(NotReady):
    """The kubelet does not tell of the pod or the container; it may a moment later."""


@dataclass(frozen=True, slots=True)
class PodList:
    """The pods of a node.

    Args:
        pods: by UID.
        unusable: why an entry was not taken, by UID.
    """

    pods: Mapping[str, Pod] = field(default_factory=dict)
    unusable: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, document: JSON) -> PodList:
        """What a kubelet answered.

        Raises:
            MalformedError: it is no list of pods.
        """
        if not isinstance(document, dict) or document.get("kind") != "PodList":
            raise MalformedError("it is no PodList")
        items = document.get("items") or []  # an empty list is null
        if not isinstance(items, list):
            raise MalformedError("it is no PodList")
        pods, unusable = dict[str, Pod](), dict[str, str]()
        for item in items:
            uid = _text(_object(_object(item).get("metadata")).get("uid"))
            try:
                pod = _pod(_object(item), uid)
            except MalformedError as error:
                unusable[uid] = str(error)
                continue
            if uid in pods:
                unusable[uid] = "two pods have it"
            pods[uid] = pod
        return cls({uid: pod for uid, pod in pods.items() if uid not in unusable}, unusable)

    def selectors(self, place: Place, *, containers: bool) -> frozenset[Selector]:
        """What a process at this place is known by.

        Args:
            place: where it is.
            containers: whether its container counts, too.

        Raises:
            NotListed: there is no such pod, or container.
        """
        pod = self._pod(place)
        if not containers or place.container is None:
            return pod.selectors
        if (container := pod.containers.get(place.container)) is None:
            raise NotListed(f"the kubelet does not tell that {place} runs")
        return pod.selectors | {container}

    def _pod(self, place: Place) -> Pod:
        if place.uid is None:
            found = [pod for pod in self.pods.values() if place.container in pod.containers]
            if len(found) != 1:
                raise NotListed(f"the kubelet tells of {len(found)} pods with {place}")
            return found[0]
        if (reason := self.unusable.get(place.uid)) is not None:
            raise NotListed(f"what the kubelet tells of {place} can not be used: {reason}")
        if (pod := self.pods.get(place.uid)) is None:
            raise NotListed(f"the kubelet does not tell of {place}")
        return pod


def _pod(item: Mapping[str, JSON], uid: str) -> Pod:
    metadata, spec = _object(item.get("metadata")), _object(item.get("spec"))
    values = {
        "pod-uid": uid,
        "ns": _text(metadata.get("namespace")),
        "pod": _text(metadata.get("name")),
        "node": _text(spec.get("nodeName")),
    }
    if account := _text(spec.get("serviceAccountName")):  # a static pod has none
        values["sa"] = account
    selectors = {_selector(what, value) for what, value in values.items()}
    for key, value in _object(metadata.get("labels")).items():
        if not isinstance(value, str):
            raise MalformedError(f"its label {key[:100]!r} is no text")
        selectors.add(_selector("label", f"{key}={value}"))
    return Pod(frozenset(selectors), dict(_containers(_object(item.get("status")))))


def _containers(status: Mapping[str, JSON]) -> Iterator[tuple[str, Selector]]:
    """By their ids (`containerd://<id>`); one that restarted has the id of its present run."""
    for kind in _STATUSES:
        rows = status.get(kind)
        for row in map(_object, rows if isinstance(rows, list) else []):
            if container := _text(row.get("containerID")).partition("://")[2]:
                yield container, _selector("container", _text(row.get("name")))


def _selector(what: str, value: str) -> Selector:
    try:
        return Selector.parse(f"k8s:{what}:{value}")
    except ConfigurationError as error:
        raise MalformedError(str(error)) from error


def _object(value: JSON) -> dict[str, JSON]:
    return value if isinstance(value, dict) else {}


def _text(value: JSON) -> str:
    return value if isinstance(value, str) else ""
