"""What every replica watches: pods, service accounts and namespaces; and the views over them that judge callers.

The views count as live for a while after the API server was last heard, so that a short outage does no harm. What is
deleted during the outage is not seen until it ends.
"""

from __future__ import annotations

from collections.abc import Coroutine, Mapping
from datetime import timedelta

from ca.controller.snapshot import Namespace, ServiceAccount
from ca.platform.kubernetes.api.client import KubernetesAPI, Selection
from ca.platform.kubernetes.api.objects import Key, Object, member, object_of, text
from ca.platform.kubernetes.api.reflector import Reflector
from ca.platform.kubernetes.api.resources import NAMESPACES, PODS, SERVICE_ACCOUNTS
from ca.platform.kubernetes.callers.pods import PodIndex
from ca.platform.kubernetes.facts import PodFact
from ca.platform.kubernetes.secrets.snapshots import read_account, read_namespace

Tasks = Mapping[str, Coroutine[object, object, None]]
"""What has to run, by name."""

_NOT_FAILED = Selection(fields="status.phase!=Failed")


class ClusterWatch:
    """The reflectors, and the views over them. Lives on one event loop.

    Args:
        api: the API server.
        stale_after: how long after the API server was last heard the views count as live.

    Attributes:
        accounts, namespaces, pods: the reflectors.
        pod_index: the `PodView`.
        account_view: the `ServiceAccountView`.
    """

    def __init__(self, api: KubernetesAPI, *, stale_after: timedelta) -> None:
        self.accounts: Reflector[ServiceAccount] = Reflector(api, SERVICE_ACCOUNTS, read_account)
        self.namespaces: Reflector[Namespace] = Reflector(api, NAMESPACES, read_namespace)
        self.pods: Reflector[PodFact] = Reflector(api, PODS, read_pod, selection=_NOT_FAILED)
        self.pod_index = PodIndex(lambda: self.pods.age() <= stale_after)
        self.account_view = AccountView(self.accounts, stale_after)
        self.pods.on_change(self._pod_changed)

    def tasks(self) -> Tasks:
        """What has to run as long as the views are used, by name."""
        return {"service accounts": self.accounts.run(), "namespaces": self.namespaces.run(), "pods": self.pods.run()}

    def _pod_changed(self, key: Key) -> None:
        pod = self.pods.facts.get(key)
        if pod is None:
            self.pod_index.remove(key.namespace, key.name)
        else:
            self.pod_index.put(pod)


class AccountView:
    """The `ServiceAccountView` over a reflector.

    Args:
        accounts: the reflector.
        stale_after: how long after the API server was last heard it counts as live.
    """

    def __init__(self, accounts: Reflector[ServiceAccount], stale_after: timedelta) -> None:
        self._accounts = accounts
        self._stale_after = stale_after

    @property
    def live(self) -> bool:
        """Whether the answers here are up to date, or were a moment ago."""
        return self._accounts.age() <= self._stale_after

    def uid(self, namespace: str, name: str) -> str | None:
        """The UID of a service account; None if there is none, or if its deletion was asked for."""
        account = self._accounts.get(name, namespace=namespace)
        return None if account is None or account.terminating else account.uid


def read_pod(item: Object) -> PodFact:
    """The facts about a pod."""
    metadata, spec = object_of(item.get("metadata")), object_of(item.get("spec"))
    return PodFact(
        text(metadata, "uid"),
        text(metadata, "namespace"),
        text(metadata, "name"),
        text(spec, "serviceAccountName"),
        text(spec, "nodeName"),
        text(item, "status", "phase") or "Pending",
        bool(member(metadata, "deletionTimestamp")),
    )
