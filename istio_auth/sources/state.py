"""What a source holds, and whether it works, as one immutable value: each change makes a new one. Without I/O."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Self

from istio_auth.errors import IstioAuthError
from istio_auth.sources.expiry import Notices, due, notices
from istio_auth.svid import X509SVID
from istio_auth.x509_source import X509Context


@dataclass(frozen=True, slots=True)
class State:
    """A source at one moment.

    Args:
        context: the snapshot; None before the first, and after it was lost.
        since: when it came.
        end: from when on it is not served; None if it is served without end.
        lost: why the snapshot was lost; None if it was not.
        trouble: what is wrong at present; None if nothing is.
        updates: how many snapshots there were.
        pending: the warnings about its SVIDs that are not logged yet.
        closed: whether it was closed, which is for good.
    """

    context: X509Context | None = None
    since: datetime | None = None
    end: datetime | None = None
    lost: IstioAuthError | None = None
    trouble: str | None = None
    updates: int = 0
    pending: Notices = ()
    closed: bool = False

    @property
    def held(self) -> X509Context | None:
        """The snapshot, under the name that all sources use."""
        return self.context

    @property
    def default(self) -> X509SVID | None:
        """The default SVID, if one is held."""
        return self.context.svids[0] if self.context is not None and self.context.svids else None

    def serves(self, now: datetime) -> bool:
        """Whether there is a snapshot to serve."""
        return self.context is not None and (self.end is None or now < self.end)

    def says(self, context: X509Context) -> bool:
        """Whether the same content is held already."""
        return self.context is not None and _content(self.context) == _content(context)

    def holding(self, context: X509Context, now: datetime, *, ends: bool, trouble: Exception | None) -> Self:
        """The state with this snapshot; if `ends`, it is served until its default SVID ends."""
        pending = notices(context.svids, self.context.svids if self.context is not None else (), self.pending)
        end = context.svids[0].not_after if ends and context.svids else None
        return type(self)(context, now, end, None, _text(trouble), self.updates + 1, pending)

    def troubled(self, error: Exception | None) -> Self:
        """The state with the same snapshot, and this trouble or none."""
        return replace(self, trouble=_text(error))

    def losing(self, reason: IstioAuthError) -> Self:
        """The state without a snapshot, for this reason."""
        # A copy has no traceback, which would keep objects alive.
        return type(self)(lost=copy.copy(reason), trouble=_text(reason), updates=self.updates)

    def closing(self) -> Self:
        """The state of a closed source, for good."""
        return type(self)(updates=self.updates, closed=True)

    def told(self, now: datetime) -> tuple[Notices, Self]:
        """The warnings that are due by now, and the state after they were logged."""
        said, later = due(self.pending, now)
        return said, replace(self, pending=later)


def _content(context: X509Context) -> tuple[object, ...]:
    return context.svids, frozenset(context.bundles)


def _text(error: Exception | None) -> str | None:
    return None if error is None else str(error) or type(error).__name__
