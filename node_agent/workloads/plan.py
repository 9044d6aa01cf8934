"""What is due for the workloads of this node now: what to ask the CA for, and what to let go of. Pure.

* A due time is drawn once for each SVID, around half of its life. A lifetime or a name that has changed makes it due
  now; so does a validity that has not begun, for then the clock was set back.
* The most urgent come first.
* What is held is served until its real end, and let go of only then.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime, timedelta

from istio_auth.spiffe_id import SpiffeID
from node_agent.workloads.cache import Held, Snapshot
from node_agent.workloads.registrations import Want

LONGEST_WAIT = timedelta(seconds=30)  # short enough to notice a wall clock that has jumped


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do now.

    Args:
        renew: what to ask for, the most urgent first.
        lapsed: the identities whose SVIDs have ended.
        wait: how long there is nothing else to do.
    """

    renew: tuple[Want, ...]
    lapsed: frozenset[SpiffeID]
    wait: timedelta


def plan(snapshot: Snapshot, left_alone: AbstractSet[SpiffeID], now: datetime) -> Plan:
    """What to ask for, and what to let go of.

    Args:
        snapshot: what is wanted and held.
        left_alone: identities that were refused a moment ago.
        now: the present instant.
    """
    held = snapshot.held
    lapsed = frozenset(spiffe_id for spiffe_id, each in held.items() if each.svid.not_after <= now)
    renew = [
        want
        for spiffe_id, want in snapshot.wanted.items()
        if spiffe_id not in left_alone and is_due(held.get(spiffe_id), want, now)
    ]
    renew.sort(key=lambda want: held[want.spiffe_id].svid.not_after if want.spiffe_id in held else now)
    instants = (moment for each in held.values() for moment in (each.due, each.svid.not_after) if moment > now)
    return Plan(tuple(renew), lapsed, min((moment - now for moment in instants), default=LONGEST_WAIT))


def is_due(held: Held | None, want: Want, now: datetime) -> bool:
    """Whether to ask for another SVID."""
    return held is None or held.want != want or now >= held.due or now < held.svid.not_before


def first_to_lapse(snapshot: Snapshot) -> datetime | None:
    """When the first workload loses its certificate if no more of them come; None if none has one."""
    return min((held.svid.not_after for held in snapshot.held.values()), default=None)
