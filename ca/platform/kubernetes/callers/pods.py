"""PodIndex: the watched pods, found by UID, and counted by node and service account. Every step takes constant time.

A follower of a node hears when the first pod of a service account comes to it or the last one leaves it, and nothing
about other nodes.

The fact about a pod is never changed but replaced, by the pod's name: so a pod that was made again under an old name is
another pod, and the old UID is gone. A pod counts for its node from when it is scheduled until it is removed or has
failed. One that completed still counts, and so does one whose deletion was asked for: until its node has ended it, it
runs and needs its identity.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Set as AbstractSet
from typing import NamedTuple, Protocol

from ca.platform.kubernetes.facts import PodFact
from istio_auth.subscribers import Subscribers

_COUNTED = frozenset({"Pending", "Running", "Succeeded"})


class PodView(Protocol):
    """Knows the present pods."""

    @property
    def live(self) -> bool:
        """Whether the answers here are up to date."""
        ...

    def pod(self, uid: str) -> PodFact | None:
        """The pod with this UID; None if it is not there."""
        ...

    def on_node(self, node: str, namespace: str, service_account: str) -> bool:
        """Whether a pod of this service account counts for this node."""
        ...


class NodeView(PodView, Protocol):
    """Knows the present pods, and what changes on a node."""

    def accounts_on(self, node: str) -> AbstractSet[Account]:
        """The service accounts of the pods that count for this node; a view that changes."""
        ...

    def follow(self, node: str, changed: Callable[[], None]) -> Callable[[], None]:
        """Call `changed` when a service account comes to this node or leaves it, until the returned one is called."""
        ...


class PodIndex:
    """The `NodeView` that is told what to hold. Lives on one event loop.

    Args:
        live: whether what was put here is up to date.
    """

    def __init__(self, live: Callable[[], bool]) -> None:
        self._live = live
        self._by_name: dict[tuple[str, str], PodFact] = {}
        self._by_uid: dict[str, PodFact] = {}
        self._counts: dict[str, dict[Account, int]] = {}  # by node
        self._followers: dict[str, Subscribers] = {}

    @property
    def live(self) -> bool:
        """Whether what is here is up to date. If not, a pod that is missing here may exist all the same."""
        return self._live()

    def put(self, pod: PodFact) -> None:
        """Take a pod in, in the place of an earlier fact under its name."""
        before = self._forget(pod.namespace, pod.name)
        self._by_name[pod.namespace, pod.name] = self._by_uid[pod.uid] = pod
        self._move(None if before is None else _place(before), _place(pod))

    def remove(self, namespace: str, name: str) -> None:
        """Forget the pod of this name, if there is one."""
        if (pod := self._forget(namespace, name)) is not None:
            self._move(_place(pod), None)

    def pod(self, uid: str) -> PodFact | None:
        """The pod of this UID; None if it is not there."""
        return self._by_uid.get(uid)

    def on_node(self, node: str, namespace: str, service_account: str) -> bool:
        """Whether a pod of this service account counts for this node."""
        return Account(namespace, service_account) in self._counts.get(node, {})

    def accounts_on(self, node: str) -> AbstractSet[Account]:
        """The service accounts of the pods that count for this node; a view that changes."""
        return self._counts.get(node, {}).keys()

    def follow(self, node: str, changed: Callable[[], None]) -> Callable[[], None]:
        """Call `changed` when a service account has come to this node or left it (see `NodeView`)."""
        end = self._followers.setdefault(node, Subscribers()).add(changed)

        def leave() -> None:
            end()
            if node in self._followers and not self._followers[node]:
                del self._followers[node]

        return leave

    def _forget(self, namespace: str, name: str) -> PodFact | None:
        pod = self._by_name.pop((namespace, name), None)
        if pod is not None and self._by_uid.get(pod.uid) is pod:
            del self._by_uid[pod.uid]
        return pod

    def _move(self, before: _Place | None, now: _Place | None) -> None:
        """Count a pod where it is now, and no longer where it was. Nobody is told if it stays where it is."""
        if before == now:
            return
        for place, step in ((before, -1), (now, +1)):
            if place is not None:
                self._count(place, step)

    def _count(self, place: _Place, step: int) -> None:
        on_node = self._counts.setdefault(place.node, {})
        was = on_node.get(place.account, 0)
        on_node[place.account] = was + step
        if not on_node[place.account]:
            del on_node[place.account]
        if not on_node:
            del self._counts[place.node]
        came_or_left = not was or not was + step
        if came_or_left and (followers := self._followers.get(place.node)) is not None:
            followers.tell()

    def __len__(self) -> int:
        return len(self._by_name)


class Account(NamedTuple):
    """A service account, by its names."""

    namespace: str
    name: str


class _Place(NamedTuple):
    node: str
    account: Account


def _place(pod: PodFact) -> _Place | None:
    if not pod.node or pod.phase not in _COUNTED:
        return None
    return _Place(pod.node, Account(pod.namespace, pod.service_account))
