"""Plans the ConfigMap with the trust bundle in one namespace, and tells since when all of them hold it. Pure.

Each managed namespace has one of that name, with our bundle in it, whoever made it: istiod makes such ConfigMaps too,
and a workload that finds another root there does not trust our certificates. Only one with the mark of *another* CA is
not touched. In a namespace that is no longer managed, only one with our own mark is deleted.
"""

from __future__ import annotations

import enum
import sys
from collections.abc import Iterable
from datetime import datetime
from typing import Final, NamedTuple

from ca.controller.namespaces import Scope
from ca.controller.snapshot import MARK_LABEL
from ca.platform.kubernetes.api.objects import Object, member, object_of, text
from ca.platform.kubernetes.facts import ConfigMapFact

NAME: Final = "istio-ca-root-cert"
DATA_KEY: Final = "root-cert.pem"
CONFIG_LABEL: Final = "istio.io/config"


class PublishedRoots(NamedTuple):
    """A trust bundle as it is published.

    Args:
        sequence: of the bundle.
        pem: its roots.
    """

    sequence: int
    pem: str


class Step(enum.Enum):
    """What is done to a ConfigMap."""

    CREATE = "create"
    UPDATE = "update"
    DELETE = "delete"


class Foreign(enum.Enum):
    """Why nothing is done although something is wrong."""

    ANOTHER_CA = "it carries the mark of another CA"
    CONTENDED = "somebody keeps changing it back"


def read_config_map(item: Object) -> ConfigMapFact:
    """The facts about a ConfigMap."""
    pem = member(item, "data", DATA_KEY)
    labels = object_of(member(item, "metadata", "labels"))
    return ConfigMapFact(
        text(item, "metadata", "uid"),
        text(item, "metadata", "resourceVersion"),
        sys.intern(pem) if isinstance(pem, str) else None,
        labels.get(CONFIG_LABEL) == "true",
        text(labels, MARK_LABEL),
        bool(text(item, "metadata", "deletionTimestamp")),
        item.get("immutable") is True,
    )


def holds(found: ConfigMapFact | None, pem: str) -> bool:
    """Whether a ConfigMap is as it shall be."""
    return found is not None and found.pem == pem and found.labelled


def next_step(scope: Scope, found: ConfigMapFact | None, pem: str, mark: str) -> Step | Foreign | None:
    """What is to be done in one namespace; None if nothing.

    Args:
        scope: what we have to do with the namespace.
        found: the ConfigMap of that name, if there is one.
        pem: the trust bundle that shall be in it.
        mark: the name of this CA.
    """
    if scope is Scope.LEFT_ALONE or (found is not None and found.terminating):
        return None
    if scope is Scope.UNMANAGED:
        return Step.DELETE if found is not None and found.mark == mark else None
    if found is None:
        return Step.CREATE
    if holds(found, pem):
        return None
    if found.mark not in ("", mark):
        return Foreign.ANOTHER_CA
    return Step.DELETE if found.immutable and found.pem != pem else Step.UPDATE  # a deleted one is then made anew


def new_config_map(pem: str, mark: str) -> Object:
    """The ConfigMap to create."""
    return {"metadata": {"name": NAME, "labels": {CONFIG_LABEL: "true", MARK_LABEL: mark}}, "data": {DATA_KEY: pem}}


def patch_of(found: ConfigMapFact, pem: str, mark: str) -> Object:
    """The merge patch that makes this ConfigMap right, in this version only; everything else in it stays."""
    return {
        "metadata": {
            "uid": found.uid,
            "resourceVersion": found.version,
            "labels": {CONFIG_LABEL: "true", MARK_LABEL: mark},
        },
        "data": {DATA_KEY: pem},
    }


class Publication:
    """Since when every managed namespace holds the present bundle.

    While a new namespace does not hold it yet, there is no such time. Once it does, the time is what it was before, for
    nobody in the new namespace has read an older bundle. If a namespace loses the bundle, the time begins anew.
    """

    def __init__(self) -> None:
        self._sequence: int | None = None
        self._lacking: set[str] = set()
        self._holding: set[str] = set()
        self._since: datetime | None = None

    @property
    def sequence(self) -> int | None:
        """The sequence of the present bundle; None before `begin`."""
        return self._sequence

    @property
    def lacking(self) -> int:
        """How many managed namespaces are without it."""
        return len(self._lacking)

    def begin(self, sequence: int, namespaces: Iterable[str], now: datetime) -> None:
        """Begin with another bundle, which none of these namespaces is known to hold."""
        self._sequence, self._since = sequence, None
        self._lacking, self._holding = set(namespaces), set()
        self._conclude(now)

    def holds(self, namespace: str, now: datetime) -> bool:
        """Note that a managed namespace holds it; whether that was the last one that lacked it."""
        was_lacking = bool(self._lacking)
        self._lacking.discard(namespace)
        self._holding.add(namespace)
        self._conclude(now)
        return was_lacking and not self._lacking

    def lacks(self, namespace: str) -> None:
        """Note that a managed namespace does not hold it."""
        if namespace in self._holding:
            self._holding.discard(namespace)
            self._since = None
        self._lacking.add(namespace)

    def is_gone(self, namespace: str, now: datetime) -> None:
        """Note that a namespace is not managed, or is gone."""
        self._lacking.discard(namespace)
        self._holding.discard(namespace)
        self._conclude(now)

    def since(self, sequence: int) -> datetime | None:
        """Since when every managed namespace holds the bundle of this sequence or a later one; None if one does not."""
        if self._sequence is None or self._sequence < sequence or self._lacking:
            return None
        return self._since

    def _conclude(self, now: datetime) -> None:
        if not self._lacking and self._since is None:
            self._since = now
