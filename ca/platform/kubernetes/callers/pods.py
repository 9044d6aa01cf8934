"""PodIndex: the watched pods, found by UID, and counted by node and service account. Every step takes constant time.

What a pod is, is never changed in place: a fact under a name takes the place of what was under that name, so a pod
that was made anew under an old name is another pod, and the old UID is gone. A pod counts for its node from the
moment it is scheduled until it is removed or has failed; one that completed counts, and so does one whose deletion
was asked for, because until its node has ended it, it runs and needs its identity.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from ca.platform.kubernetes.facts import PodFact

_COUNTED = frozenset({"Pending", "Running", "Succeeded"})


class PodView(Protocol):
    """Knows the pods of now."""

    @property
    def live(self) -> bool:
        """Whether what is told here is the state of things now."""
        ...

    def pod(self, uid: str) -> PodFact | None:
        """The pod of this UID; None if it is not there."""
        ...

    def on_node(self, node: str, namespace: str, service_account: str) -> bool:
        """Whether a pod of this service account counts for this node."""
        ...


class PodIndex:
    """The `PodView` that is told what to hold. Lives on one event loop.

    Args:
        live: whether what was put here is the state of things now, as far as the API server can be heard.
    """

    def __init__(self, live: Callable[[], bool]) -> None:
        self._live = live
        self._by_name: dict[tuple[str, str], PodFact] = {}
        self._by_uid: dict[str, PodFact] = {}
        self._counts: dict[_Place, int] = {}

    @property
    def live(self) -> bool:
        """Whether what is here is the state of things now. If not, a pod that is missing may be there all the same."""
        return self._live()

    def put(self, pod: PodFact) -> None:
        """Take a pod in, in the place of what was known under its name."""
        self.remove(pod.namespace, pod.name)
        self._by_name[pod.namespace, pod.name] = self._by_uid[pod.uid] = pod
        if (place := _place(pod)) is not None:
            self._counts[place] = self._counts.get(place, 0) + 1

    def remove(self, namespace: str, name: str) -> None:
        """Forget the pod of this name, if there is one."""
        pod = self._by_name.pop((namespace, name), None)
        if pod is None:
            return
        if self._by_uid.get(pod.uid) is pod:
            del self._by_uid[pod.uid]
        if (place := _place(pod)) is not None:
            self._counts[place] -= 1
            if not self._counts[place]:
                del self._counts[place]

    def pod(self, uid: str) -> PodFact | None:
        """The pod of this UID; None if it is not there."""
        return self._by_uid.get(uid)

    def on_node(self, node: str, namespace: str, service_account: str) -> bool:
        """Whether a pod of this service account counts for this node."""
        return _Place(node, namespace, service_account) in self._counts

    def __len__(self) -> int:
        return len(self._by_name)


class _Place(NamedTuple):
    node: str
    namespace: str
    service_account: str


def _place(pod: PodFact) -> _Place | None:
    if not pod.node or pod.phase not in _COUNTED:
        return None
    return _Place(pod.node, pod.namespace, pod.service_account)
