"""What the workloads of this node hold: one live SVID for each registered identity, and the bundles, as one snapshot.

A snapshot is immutable; every change replaces it whole and then tells the subscribers, on the event loop. The SVID of
an identity that nobody is registered for any more is gone at once, key and all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from datetime import datetime

from istio_auth.bundle import BundleSet
from istio_auth.registration import Registration
from istio_auth.spiffe_id import SpiffeID
from istio_auth.subscribers import Subscribers
from istio_auth.svid import X509SVID
from istio_auth.x509_source import X509Context
from node_agent.workloads.registrations import Want, wants


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """An SVID of a workload.

    Args:
        svid: itself.
        want: what it was asked for by; one that differs from what is wanted now is to be replaced.
        due: when to renew it, drawn once.
    """

    svid: X509SVID
    want: Want
    due: datetime


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """What is registered and held at one moment.

    Args:
        registrations: in their order.
        wanted: the SVIDs that they call for.
        held: those that are there.
        bundles: whom to trust.
    """

    bundles: BundleSet = field(default_factory=BundleSet)
    registrations: tuple[Registration, ...] = ()
    wanted: Mapping[SpiffeID, Want] = field(default_factory=dict)
    held: Mapping[SpiffeID, Held] = field(default_factory=dict)

    def context_of(self, ids: Iterable[SpiffeID]) -> X509Context:
        """What a workload with these identities holds now."""
        return X509Context(tuple(self.held[each].svid for each in ids if each in self.held), self.bundles)


class WorkloadCache:
    """The present snapshot, and who wants to hear of the next. For one event loop."""

    def __init__(self, bundles: BundleSet) -> None:
        self.snapshot = Snapshot(bundles)
        self._subscribers = Subscribers()

    def register(self, registrations: tuple[Registration, ...]) -> None:
        """Put these in the place of all earlier registrations."""
        wanted = wants(registrations)
        held = {spiffe_id: each for spiffe_id, each in self.snapshot.held.items() if spiffe_id in wanted}
        self._replace(replace(self.snapshot, registrations=registrations, wanted=wanted, held=held))

    def trust(self, bundles: BundleSet) -> None:
        """Put these in the place of the bundles."""
        self._replace(replace(self.snapshot, bundles=bundles))

    def put(self, fresh: Iterable[Held]) -> list[Held]:
        """Put these SVIDs in the place of older ones, unless nobody is registered for them any more.

        Returns:
            those that were put in.
        """
        taken = [each for each in fresh if each.want.spiffe_id in self.snapshot.wanted]
        if taken:
            held = {**self.snapshot.held, **{each.want.spiffe_id: each for each in taken}}
            self._replace(replace(self.snapshot, held=held))
        return taken

    def drop(self, ids: AbstractSet[SpiffeID]) -> None:
        """Let go of the SVIDs of these identities."""
        held = {spiffe_id: each for spiffe_id, each in self.snapshot.held.items() if spiffe_id not in ids}
        if len(held) != len(self.snapshot.held):
            self._replace(replace(self.snapshot, held=held))

    def subscribe(self, changed: Callable[[], None]) -> Callable[[], None]:
        """Call `changed` after each replacement, until the returned function is called."""
        return self._subscribers.add(changed)

    def _replace(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self._subscribers.tell()
