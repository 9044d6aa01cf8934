"""What a workload earns by its selectors now: its identities, with their SVIDs and bundles in the present snapshot.

A caller's selectors are observed once, when its stream opens, and hold for that stream: the connection belongs to the
calling process. What they earn is worked out again for each new snapshot.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet

from istio_auth.registration import Registration, Selector, earned, nearest
from istio_auth.spiffe_id import SpiffeID
from istio_auth.x509_source import X509Context
from node_agent.workloads.cache import WorkloadCache


class Entitlement:
    """One workload's part of the cache.

    Args:
        selectors: what was observed of it.
        cache: what the workloads hold.
    """

    def __init__(self, selectors: AbstractSet[Selector], cache: WorkloadCache) -> None:
        self._selectors, self._cache = selectors, cache
        self._seen: object = None
        self._all: tuple[Registration, ...] | None = None
        self._earned: tuple[Registration, ...] = ()
        self._ids: tuple[SpiffeID, ...] = ()
        self._context: X509Context

    @property
    def registrations(self) -> tuple[Registration, ...]:
        """The registrations that it fits, its default identity first."""
        self._look()
        return self._earned

    @property
    def ids(self) -> tuple[SpiffeID, ...]:
        """Its identities, the default first, each once."""
        self._look()
        return self._ids

    @property
    def context(self) -> X509Context:
        """What it holds now: the SVIDs that are there of its identities, and the bundles."""
        self._look()
        return self._context

    def explained(self) -> dict[str, object]:
        """What keeps it from an identity, for the log."""
        self._look()
        selectors = sorted(map(str, self._selectors))
        if (near := nearest(self._all or (), self._selectors)) is None:
            return {"selectors": selectors, "nearest": "nothing is registered"}
        missing = sorted(map(str, near.missing(self._selectors)))
        return {"selectors": selectors, "nearest": str(near.spiffe_id), "missing": missing}

    def _look(self) -> None:
        """Take up the present snapshot."""
        if self._seen is (snapshot := self._cache.snapshot):
            return
        self._seen = snapshot
        if snapshot.registrations is not self._all:
            self._all = snapshot.registrations
            self._earned = tuple(earned(self._all, self._selectors))
            self._ids = tuple(dict.fromkeys(each.spiffe_id for each in self._earned))
        self._context = snapshot.context_of(self._ids)
