"""The takeover of a plugged-in issuer: the next step, decided without I/O from what is stored and what is offered.

    offered, below the root of the active issuer     -> active at once: everybody has that root
    offered, below another root                      -> prepared: its root joins the bundle
    prepared, and the bundle is published            -> a deadline is set: by then everybody has read it
    prepared, and the deadline is over               -> active; the old issuer is retired, and its key is not kept
    prepared, and no longer offered                  -> dropped: nothing was signed with it
    retired, and the last leaf below its root ended  -> out of the bundle (`pruned`)

After an issuer was prepared or made active, no other takes its place for a while, whatever is offered: a replica that
sees the files change later than the others must not undo their step.

A step is a whole new state, stored by compare-and-swap before anything acts on it: one of the replicas makes it and the
others load it, and after a crash it is decided again. So the bundle always holds the root of every issuer whose leaves
may be alive, and nothing is signed below a new root before a bundle with both the old and the new root was published.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from cryptography import x509

from ca.authority.state import AuthorityState, IssuerState, KeyReference
from istio_auth.keys import public_key_of, same_key
from istio_auth.pem import write_der

SIGNS = "prepared signs"
STAYS = "choice stays"
_DROP = "drop root "
# A replica that has not heard of the switch yet goes on signing with the old issuer.
_LATE_REPLICAS = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Pace:
    """How long the steps take.

    Args:
        settling: from the publication of a bundle until everybody who reads it has it; zero if nothing has to wait.
        longest_ttl: the longest lifetime of a leaf.
    """

    settling: timedelta
    longest_ttl: timedelta


@dataclass(frozen=True, slots=True)
class Wait:
    """Why no step can be taken now, although what is stored is not yet what is offered.

    Args:
        reason: the cause, for people.
    """

    reason: str


def next_step(
    state: AuthorityState, offered: IssuerState | None, now: datetime, *, published: bool, pace: Pace
) -> AuthorityState | Wait | None:
    """What to store next; None when nothing is left to do.

    Args:
        state: what is stored.
        offered: the issuer that is plugged in now, with a reference in the place of its key; None if there is none.
        now: the present instant.
        published: whether the bundle of this state is in every place where it is read.
        pace: how long the steps take.
    """
    if (granting := state.granting(pace.longest_ttl)) is not state:
        return granting
    signing = offered is None or (offered == state.active and _where(offered) == _where(state.active))
    if signing and state.prepared is None:
        gone = offered is None and _where(state.active) is not None
        return Wait("its files are gone: after a restart nothing can be signed") if gone else None
    if offered is not None and offered == state.prepared:
        return _prepared(state, offered, now, published=published, pace=pace)
    if now < (stays := state.deadlines.get(STAYS, now)):
        return Wait(f"it was changed a moment ago, and will be looked at again from {stays:%F %T} UTC on")
    if signing or offered is None:
        return _preparing(state, None, now, pace)
    if offered.root == state.active.root:
        return _activated(state, offered, now, pace)
    return _preparing(state, offered, now, pace)


def pruned(state: AuthorityState, now: datetime) -> AuthorityState:
    """The state without retired issuers whose leaves have all ended; the same object if there are none."""
    kept = tuple(issuer for issuer in state.retired if now < _last_use(state, issuer.root))
    if len(kept) == len(state.retired):
        return state
    gone = {_drop(issuer.root) for issuer in state.retired} - {_drop(issuer.root) for issuer in kept}
    return state.followed_by(replace(state, retired=kept, deadlines=_without(state.deadlines, *gone)))


def reconciled(found: AuthorityState, known: AuthorityState) -> AuthorityState:
    """The state to go on with when a replica finds another stored state than the one it knows.

    It is the stored one, if that can be a successor: a bundle sequence never goes back, and never stands for two
    bundles. Otherwise somebody has deleted the state and a new root was made, or has put an older copy there. Consumers
    trust the known bundle and must not be cut off, so the known state goes on, and the root that was found is trusted
    beside it.

    Args:
        found: what is stored.
        known: what this process knows.
    """
    roots = known.bundle().x509_authorities
    keeps_word = found.bundle().x509_authorities == roots or _same_key(found.active, known.active)
    if found.sequence > known.sequence or (found.sequence == known.sequence and keeps_word):
        return found
    stranger = () if found.active.root in roots else (replace(found.active, key=None, other_roots=()),)
    sequence = max(found.sequence, known.sequence) + 1
    return replace(known, retired=(*stranger, *known.retired), sequence=sequence)


def _preparing(state: AuthorityState, issuer: IssuerState | None, now: datetime, pace: Pace) -> AuthorityState:
    """The step to this issuer as the prepared one; with None, the step that drops the prepared one."""
    deadlines = _without(state.deadlines, SIGNS) | {STAYS: now + pace.settling}
    return state.followed_by(replace(state, prepared=issuer, deadlines=deadlines))


def _prepared(
    state: AuthorityState, issuer: IssuerState, now: datetime, *, published: bool, pace: Pace
) -> AuthorityState | Wait:
    """The step after `prepared`. It waits for the publication again at the end: the bundle may have changed since."""
    signs = state.deadlines.get(SIGNS)
    if not published:
        return Wait(f"it signs when the bundle with sequence {state.sequence}, which holds its root, is published")
    if signs is None:
        return replace(state, deadlines={**state.deadlines, SIGNS: now + pace.settling})
    if now < signs:
        return Wait(f"it signs from {signs:%F %T} UTC on, when everybody has read the bundle that holds its root")
    return _activated(state, issuer, now, pace)


def _activated(state: AuthorityState, issuer: IssuerState, now: datetime, pace: Pace) -> AuthorityState:
    old, deadlines = state.active, _without(state.deadlines, SIGNS) | {STAYS: now + pace.settling}
    if issuer.root == old.root:
        return state.followed_by(replace(state, active=issuer, prepared=None, deadlines=deadlines))
    retired = (replace(old, other_roots=()), *(other for other in state.retired if other.root != issuer.root))
    last_leaf = now + state.longest_ttl + _LATE_REPLICAS
    # A root that retired earlier without a deadline is an older one of the same key: no leaf needs it longer.
    ends = {_drop(other.root): last_leaf for other in retired}
    new = replace(
        state,
        active=issuer,
        prepared=None,
        retired=tuple(replace(other, key=None) for other in retired),
        deadlines=ends | _without(deadlines, _drop(issuer.root)) | {_drop(old.root): last_leaf},
        longest_ttl=timedelta(),
    )
    return state.followed_by(new.granting(pace.longest_ttl))


def _last_use(state: AuthorityState, root: x509.Certificate) -> datetime:
    """When a retired root has no use any more: when the last leaf below it ends, or when it ends itself."""
    end = root.not_valid_after_utc
    return min(end, state.deadlines.get(_drop(root), end))


def _drop(root: x509.Certificate) -> str:
    return _DROP + hashlib.sha256(write_der(root)).hexdigest()


def _without(deadlines: Mapping[str, datetime], *names: str) -> dict[str, datetime]:
    return {name: instant for name, instant in deadlines.items() if name not in names}


def _same_key(one: IssuerState, other: IssuerState) -> bool:
    return same_key(public_key_of(one.certificate), public_key_of(other.certificate))


def _where(issuer: IssuerState) -> str | None:
    return issuer.key.where if isinstance(issuer.key, KeyReference) else None
