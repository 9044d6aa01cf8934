"""Which SVIDs must be spoken of because they end: late in the last fifth of their life, and ended. Arithmetic alone.

Renewal is due at about half the life (`istio_auth.rotation`): an SVID that is still there with a fifth left means that
several attempts have failed, and there is time left to mend it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias

from istio_auth.svid import X509SVID

LATE = 0.2  # of the lifetime


@dataclass(frozen=True, slots=True)
class Notice:
    """That something is to be said of an SVID, once.

    Args:
        at: from when on.
        svid: of which.
        ended: whether its life is over then, or only late.
    """

    at: datetime
    svid: X509SVID
    ended: bool


Notices: TypeAlias = tuple[Notice, ...]


def notices(svids: Iterable[X509SVID], before: Iterable[X509SVID] = (), pending: Notices = ()) -> Notices:
    """What is to be said of these SVIDs, the earliest first.

    Args:
        svids: that are held now.
        before: that were held; nothing is said anew of one that stays.
        pending: what is still to be said of those.
    """
    held, known = {svid.leaf: svid for svid in svids}, {svid.leaf for svid in before}
    kept = [notice for notice in pending if notice.svid.leaf in held]
    fresh = [notice for leaf, svid in held.items() if leaf not in known for notice in _of(svid)]
    return tuple(sorted(kept + fresh, key=lambda notice: notice.at))


def due(pending: Notices, now: datetime) -> tuple[Notices, Notices]:
    """What is to be said now, and what later. Of an SVID that has ended it is not said that it was late."""
    said = [notice for notice in pending if notice.at <= now]
    ended = {notice.svid.leaf for notice in said if notice.ended}
    return tuple(n for n in said if n.ended or n.svid.leaf not in ended), pending[len(said) :]


def _of(svid: X509SVID) -> Notices:
    late = svid.not_after - (svid.not_after - svid.not_before) * LATE
    return Notice(late, svid, ended=False), Notice(svid.not_after, svid, ended=True)
