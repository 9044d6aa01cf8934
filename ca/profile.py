"""IssuanceProfile: how long this CA's certificates live. Validated once, from the configuration.

The lifetime rules are istiod's: no TTL, or one that is not positive, means the default; one above the maximum is an
error, or clamped if the operator wants that. Nothing else about a certificate is a setting: see `ca.certificate.build`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from istio_auth.clock import in_words, whole_seconds
from istio_auth.errors import ConfigurationError, MalformedError, NotReady

_SHORTEST = timedelta(seconds=1)  # what X.509 can express


class TTLRefused(MalformedError):
    """The lifetime asked for is longer than the CA gives."""


@dataclass(frozen=True, slots=True)
class Validity:
    """When a certificate begins and ends, in whole seconds of UTC, both inclusive (RFC 5280 4.1.2.5)."""

    not_before: datetime
    not_after: datetime


@dataclass(frozen=True, slots=True)
class IssuanceProfile:
    """The lifetimes of certificates.

    Args:
        default_ttl: the lifetime when none is asked for.
        max_ttl: the longest lifetime.
        backdate: how far the validity begins in the past, for peers whose clock is late.
        backdate_share: the largest share of the lifetime that may lie in the past: a client that renews at half of
            the whole validity would otherwise renew short certificates at once.
        clamp_excess_ttl: give the maximum to those who ask for more, instead of refusing.

    Raises:
        ConfigurationError: the values contradict each other.
    """

    default_ttl: timedelta = timedelta(hours=24)
    max_ttl: timedelta = timedelta(days=90)
    backdate: timedelta = timedelta(minutes=2)
    backdate_share: float = 0.1
    clamp_excess_ttl: bool = False

    def __post_init__(self) -> None:
        if not _SHORTEST <= self.default_ttl <= self.max_ttl:
            raise ConfigurationError(
                f"the default TTL ({in_words(self.default_ttl)}) must be at least one second and at most the maximum "
                f"({in_words(self.max_ttl)})"
            )
        if self.backdate < timedelta() or not 0 <= self.backdate_share < 0.5:
            raise ConfigurationError("certificates are backdated by nothing or more, and by less than half their life")

    @property
    def longest_validity(self) -> timedelta:
        """The longest time from the beginning of a certificate to its end, allowing for rounding to whole seconds."""
        return self.max_ttl + self.backdate + _SHORTEST

    def lifetime(self, requested: timedelta | None, *, granted: timedelta | None = None) -> timedelta:
        """How long a certificate shall live from now on.

        Args:
            requested: what the caller asks for; with None, zero or less it leaves the choice to us.
            granted: the longest lifetime that its grant allows, and our choice if it leaves that to us.

        Raises:
            TTLRefused: more is asked for than the maximum.
        """
        if requested is None or requested <= timedelta():
            wanted = self.default_ttl if granted is None else granted
        else:
            wanted = requested if granted is None else min(requested, granted)
            if requested > self.max_ttl and not self.clamp_excess_ttl:
                message = f"a TTL of {in_words(requested)} is longer than the maximum of {in_words(self.max_ttl)}"
                raise TTLRefused(message, public=message)
        return max(_SHORTEST, min(wanted, self.max_ttl))

    def validity(self, lifetime: timedelta, now: datetime, *, within: Validity) -> Validity:
        """The validity of a certificate made now.

        Args:
            lifetime: how long it shall live from now on.
            now: the present instant.
            within: the validity of the chain above it, which it never leaves.

        Raises:
            NotReady: that chain is not valid now.
        """
        if now >= within.not_after:
            raise NotReady(f"the chain of this CA ended {within.not_after:%F %T} UTC: nothing can be signed with it")
        if now < within.not_before:
            raise NotReady(
                f"the chain of this CA is valid from {within.not_before:%F %T} UTC, and it is {now:%F %T}: is the "
                "clock right?"
            )
        end = min(whole_seconds(now + lifetime), within.not_after)
        backdate = min(self.backdate, (end - now) * self.backdate_share)
        return Validity(max(whole_seconds(now - max(backdate, timedelta())), within.not_before), end)

    def validity_spanning(
        self, longest: timedelta, now: datetime, *, within: Validity, backdate: timedelta | None = None
    ) -> Validity:
        """The validity of a certificate made now whose whole length, backdating included, is at most this.

        With `validity` a lifetime counts from now on, and the backdating comes on top.

        Args:
            longest: the longest time from its beginning to its end, in whole seconds.
            now: the present instant.
            within: the validity of the chain above it, which it never leaves.
            backdate: how far it shall begin in the past, if not as far as usual; it does not live longer for that.

        Raises:
            NotReady: that chain is not valid now.
        """
        rules = self if backdate is None else replace(self, backdate=backdate)
        validity = rules.validity(min(longest, self.max_ttl), now, within=within)
        end = validity.not_before + min(longest, self.max_ttl + self.backdate)
        return replace(validity, not_after=min(validity.not_after, end))

    def allowed(self, validity: Validity, now: datetime, *, within: Validity) -> Validity:
        """The validity itself, if a certificate made now may have it.

        Args:
            validity: the validity that `validity_spanning` gave before.
            now: the present instant.
            within: the validity of the chain above it.

        Raises:
            TTLRefused: it is longer than this profile ever allows.
            NotReady: it is over, or not within that of the chain, which may be another chain by now.
        """
        if validity.not_after - validity.not_before > self.longest_validity:
            raise TTLRefused(
                f"a validity of {in_words(validity.not_after - validity.not_before)} is longer than any here"
            )
        if not within.not_before <= validity.not_before < validity.not_after <= within.not_after:
            raise NotReady("the validity that was settled is not within that of the chain of this CA")
        if now >= validity.not_after:
            raise NotReady(f"the validity that was settled is over since {validity.not_after:%F %T} UTC")
        return validity
