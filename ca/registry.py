"""The Registry port: decides whether a caller may have a SPIFFE ID, and makes the `Grant`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from ca.attest import Attested
from istio_auth.spiffe_id import SpiffeID


@dataclass(frozen=True, slots=True)
class Grant:
    """What may be issued now.

    Args:
        spiffe_id: the identity.
        ttl: the longest lifetime this grant allows, and the usual one; None for the profile's own rules.
        dns_names: names to put beside the SPIFFE ID, in their order.
    """

    spiffe_id: SpiffeID
    ttl: timedelta | None = None
    dns_names: tuple[str, ...] = ()


class Registry(Protocol):
    """Knows who may have which identity."""

    def grant(self, attested: Attested, wanted: SpiffeID, now: datetime) -> Grant:
        """The grant for this caller and the identity that it asks for.

        Raises:
            NotAuthorized: it may not have it.
            NotReady: nobody can tell now.
        """
        ...
