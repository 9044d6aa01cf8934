"""Slim facts about Kubernetes objects: only what decisions need."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PodFact:
    """What is kept of a pod.

    Args:
        uid: its UID; another pod of the same name has another one.
        namespace: where it is.
        name: its name.
        service_account: the service account that it runs as.
        node: where it runs; empty until it is scheduled.
        phase: `Pending`, `Running`, `Succeeded`, `Failed` or `Unknown`.
        deleted: whether its deletion was asked for. Until its node has ended it, it is there and may well be running.
    """

    uid: str
    namespace: str
    name: str
    service_account: str
    node: str = ""
    phase: str = "Pending"
    deleted: bool = False


@dataclass(frozen=True, slots=True)
class ConfigMapFact:
    """What is kept of a ConfigMap with a trust bundle.

    Args:
        uid: of this very ConfigMap.
        version: its resource version.
        pem: the trust bundle in it (a text that ten thousand of them share is in memory once); None if there is none.
        labelled: whether it has the label by which Istio's components know their configuration.
        mark: which CA made it; empty if none of ours did.
        terminating: whether it is being deleted and only waits for its finalizers.
        immutable: whether its data can not be changed any more.
    """

    uid: str
    version: str
    pem: str | None = None
    labelled: bool = False
    mark: str = ""
    terminating: bool = False
    immutable: bool = False
