"""The renewal rule for certificates in secrets: a share of the lifetime or a minimum, spread but not at random.

    due when  remaining < max(ratio x lifetime, minimum grace) + spread,   all of it at most 80 % of the lifetime

Ratio and minimum grace are Citadel's. The spread only makes a renewal earlier, and for one certificate it is always the
same, for every replica and after every restart.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta

from istio_auth.errors import ConfigurationError
from istio_auth.rotation import HALF_LIFE, JITTER, renewal_due

SHORTEST_GRACE = 0.01  # of the lifetime
LONGEST_GRACE = 0.8  # of the lifetime: a certificate made just now is never due


@dataclass(frozen=True, slots=True)
class RenewalRule:
    """When a certificate is to be replaced.

    Args:
        ratio: the share of its lifetime that must be left.
        minimum_grace: the time that must be left, whatever the share.
        jitter: the share of the lifetime over which the renewals of certificates made together are spread.

    Raises:
        ConfigurationError: the values put the renewal outside the lifetime.
    """

    ratio: float = HALF_LIFE
    minimum_grace: timedelta = timedelta(minutes=10)
    jitter: float = JITTER

    def __post_init__(self) -> None:
        if not SHORTEST_GRACE <= self.ratio <= LONGEST_GRACE:
            raise ConfigurationError(
                f"the grace ratio must be between {SHORTEST_GRACE} and {LONGEST_GRACE}, not {self.ratio}"
            )
        if self.minimum_grace < timedelta():
            raise ConfigurationError("the minimum grace must not be negative")
        if not 0 <= self.jitter <= LONGEST_GRACE / 2:
            raise ConfigurationError(f"the jitter must be between 0 and {LONGEST_GRACE / 2}, not {self.jitter}")

    def due(self, not_before: datetime, not_after: datetime, *, draw: float) -> datetime:
        """When a certificate is to be replaced.

        Args:
            not_before: when its validity begins.
            not_after: when it ends, the earliest end in the chain.
            draw: a number in [0, 1) that belongs to this certificate (see `draw_for`).
        """
        lifetime = not_after - not_before
        if lifetime <= timedelta():
            return not_after
        grace = min(max(self.ratio, self.minimum_grace / lifetime), LONGEST_GRACE - self.jitter)
        middle = 1 - grace - self.jitter / 2
        return renewal_due(not_before, not_after, draw=draw, ratio=middle, jitter=self.jitter)


def draw_for(uid: str, serial: int) -> float:
    """A number in [0, 1) that is fixed for a certificate in an object; those of many are evenly spread."""
    digest = hashlib.blake2b(f"{uid}/{serial:x}".encode(), digest_size=6).digest()
    return int.from_bytes(digest) / (1 << 48)
