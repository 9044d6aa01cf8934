"""When the log must warn of SVIDs: at the last fifth of their life ("late"), and at their end. Arithmetic alone.

Renewal is due at about half the life (`istio_auth.rotation`). If an SVID is still in use with a fifth of its life left,
several attempts have failed, and there is still time to mend it.
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
    """One warning about an SVID, to be logged once.

    Args:
        at: when it is due.
        svid: the SVID.
        ended: whether it says that the SVID has ended, or only that it was not renewed in time.
    """

    at: datetime
    svid: X509SVID
    ended: bool


Notices: TypeAlias = tuple[Notice, ...]


def notices(svids: Iterable[X509SVID], before: Iterable[X509SVID] = (), pending: Notices = ()) -> Notices:
    """The warnings about these SVIDs, the earliest first.

    Args:
        svids: the SVIDs that are held now.
        before: the SVIDs that were held; for one that is still held no new warnings are made.
        pending: the warnings about `before` that are not logged yet.
    """
    held, known = {svid.leaf: svid for svid in svids}, {svid.leaf for svid in before}
    kept = [notice for notice in pending if notice.svid.leaf in held]
    fresh = [notice for leaf, svid in held.items() if leaf not in known for notice in _of(svid)]
    return tuple(sorted(kept + fresh, key=lambda notice: notice.at))


def due(pending: Notices, now: datetime) -> tuple[Notices, Notices]:
    """The warnings that are due now, and the later ones. If an SVID has ended, its warning of being late is dropped."""
    said = [notice for notice in pending if notice.at <= now]
    ended = {notice.svid.leaf for notice in said if notice.ended}
    return tuple(n for n in said if n.ended or n.svid.leaf not in ended), pending[len(said) :]


def _of(svid: X509SVID) -> Notices:
    late = svid.not_after - (svid.not_after - svid.not_before) * LATE
    return Notice(late, svid, ended=False), Notice(svid.not_after, svid, ended=True)
