"""What a source holds and how it is, as one immutable value: each change makes a new one. No clock, no lock."""

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
        end: from when on it is not served; None for one whose owner decides.
        lost: why there is none, where that was said.
        trouble: what is wrong and not over.
        updates: how many snapshots there were.
        pending: what will have to be said of its SVIDs.
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
        """The snapshot, as every source calls what it holds."""
        return self.context

    @property
    def default(self) -> X509SVID | None:
        """The default SVID, if one is held."""
        return self.context.svids[0] if self.context is not None and self.context.svids else None

    def serves(self, now: datetime) -> bool:
        """Whether there is a snapshot to serve."""
        return self.context is not None and (self.end is None or now < self.end)

    def says(self, context: X509Context) -> bool:
        """Whether this is what is held already."""
        return self.context is not None and _content(self.context) == _content(context)

    def holding(self, context: X509Context, now: datetime, *, ends: bool, trouble: Exception | None) -> Self:
        """With this snapshot, which ends with its default SVID or never."""
        pending = notices(context.svids, self.context.svids if self.context is not None else (), self.pending)
        end = context.svids[0].not_after if ends and context.svids else None
        return type(self)(context, now, end, None, _text(trouble), self.updates + 1, pending)

    def troubled(self, error: Exception | None) -> Self:
        """The same snapshot, with this trouble or without any."""
        return replace(self, trouble=_text(error))

    def losing(self, reason: IstioAuthError) -> Self:
        """Without a snapshot, for this reason."""
        # A copy has no traceback, which would keep alive whatever it passed through.
        return type(self)(lost=copy.copy(reason), trouble=_text(reason), updates=self.updates)

    def closing(self) -> Self:
        """Without anything, for good."""
        return type(self)(updates=self.updates, closed=True)

    def told(self, now: datetime) -> tuple[Notices, Self]:
        """What is to be said by now, and the state after it was."""
        said, later = due(self.pending, now)
        return said, replace(self, pending=later)


def _content(context: X509Context) -> tuple[object, ...]:
    return context.svids, frozenset(context.bundles)


def _text(error: Exception | None) -> str | None:
    return None if error is None else str(error) or type(error).__name__
