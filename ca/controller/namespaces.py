"""Decides which namespaces are managed: by Citadel's rules, in this order, and by a label selector.

terminating          left alone, whatever else holds
listed explicitly    managed
ca.istio.io/override `true` managed, `false` not; any other value says nothing
ca.istio.io/env      managed if it names the namespace of this CA, not managed if it names another
a selector is set    managed if the selector picks it
otherwise            the default
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from ca.controller.label_selector import LabelSelector
from ca.controller.snapshot import Namespace

OVERRIDE_LABEL = "ca.istio.io/override"
ENV_LABEL = "ca.istio.io/env"


class Scope(enum.Enum):
    """What this CA has to do with a namespace."""

    MANAGED = "managed"
    UNMANAGED = "unmanaged"  # nothing is made there; what we made is deleted when it falls due
    LEFT_ALONE = "left alone"  # terminating, or not seen (yet)


@dataclass(frozen=True, slots=True)
class NamespaceRules:
    """Tells which namespaces are managed.

    Args:
        ca_namespace: the namespace of this CA.
        enable_by_default: whether a namespace is managed if no other rule decides.
        selector: decides in place of the default.
        explicit: names that are managed unless they are terminating, even while their Namespace objects are not seen.
    """

    ca_namespace: str
    enable_by_default: bool = True
    selector: LabelSelector | None = None
    explicit: frozenset[str] = frozenset()

    def scope(self, name: str, namespace: Namespace | None) -> Scope:
        """What this CA has to do with a namespace.

        Args:
            name: its name.
            namespace: the object; None if it is not seen: it was deleted, or is newer than the watch.
        """
        if namespace is not None and namespace.terminating:
            return Scope.LEFT_ALONE
        if name in self.explicit:
            return Scope.MANAGED
        if namespace is None:
            return Scope.LEFT_ALONE
        return Scope.MANAGED if self._picks(namespace) else Scope.UNMANAGED

    def _picks(self, namespace: Namespace) -> bool:
        override = namespace.labels.get(OVERRIDE_LABEL)
        if override in ("true", "false"):
            return override == "true"
        env = namespace.labels.get(ENV_LABEL)
        if env is not None:
            return env == self.ca_namespace
        if self.selector is not None:
            return self.selector.matches(namespace.labels)
        return self.enable_by_default
