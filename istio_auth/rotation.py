"""When to renew and when to try again: arithmetic on instants, without a clock and without random numbers.

The caller draws a random number in [0, 1), *once* for each SVID or attempt, and passes it in. If a new one were drawn
at each look, an SVID would be renewed the earlier the more often somebody looked.
"""

from __future__ import annotations

from datetime import datetime, timedelta

HALF_LIFE = 0.5
JITTER = 0.1  # of the lifetime: a thousand SVIDs made together renew spread over a tenth of it


def renewal_due(
    not_before: datetime, not_after: datetime, *, draw: float, ratio: float = HALF_LIFE, jitter: float = JITTER
) -> datetime:
    """The instant at which to renew.

    Args:
        not_before: when the validity begins.
        not_after: when it ends: the earliest end in the chain.
        draw: a number in [0, 1), drawn once for this SVID.
        ratio: the share of the lifetime after which to renew.
        jitter: the share of the lifetime over which renewals are spread, half before the ratio and half after.

    Raises:
        ValueError: the shares would put the instant outside the lifetime.
    """
    if not 0 < ratio - jitter / 2 <= ratio + jitter / 2 < 1:
        raise ValueError(f"renewal at {ratio} of the lifetime, spread by {jitter}, does not fall into it")
    return not_before + (not_after - not_before) * (ratio + jitter * (draw - 0.5))


def retry_delay(attempt: int, *, draw: float, first: timedelta, longest: timedelta) -> timedelta:
    """How long to wait before the next attempt: a random part, from half to all, of a bound that doubles each time.

    Args:
        attempt: how many attempts have failed so far, from 1.
        draw: a number in [0, 1), drawn once for this wait.
        first: the bound of the first wait.
        longest: the bound of every wait.
    """
    doublings = min(attempt - 1, 30)
    bound = longest if first > longest / (1 << doublings) else first * (1 << doublings)
    return bound * (0.5 + draw / 2)


def remaining_share(not_before: datetime, not_after: datetime, now: datetime) -> float:
    """The share of the lifetime that is left, from 1 before it began to 0 after it ended."""
    if not_after <= not_before:
        return 0.0
    return min(1.0, max(0.0, (not_after - now) / (not_after - not_before)))
