"""The Attestor port: who is calling, and how that was proven. Names come from here, never from a CSR."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from istio_auth.door import TLSCaller

from istio_auth.registration import Selector
from istio_auth.spiffe_id import SpiffeID


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a caller presented: the TLS peer, already verified by the door, and the bearer token, not yet looked at."""

    caller: TLSCaller
    bearer: str | None = field(default=None, repr=False)
    public_key_fingerprint: str = ""  # of the key in the CSR: what a join token enrols


@dataclass(frozen=True, slots=True)
class Attested:
    """Who called.

    Args:
        spiffe_id: the caller's proven identity.
        method: how it was proven, in one word: `certificate`, `join-token`, `node-key`.
        selectors: what else was observed of the caller.
        details: for the issuance log: serial of the certificate, id of the token, address. Never a secret.
    """

    spiffe_id: SpiffeID
    method: str
    selectors: frozenset[Selector] = frozenset()
    details: Mapping[str, str] = field(default_factory=dict)


class Attestor(Protocol):
    """Tells from the evidence who is calling."""

    async def attest(self, evidence: Evidence) -> Attested:
        """Who is calling, by every proof that was presented.

        Raises:
            NotAuthenticated: nothing was presented, a proof is not valid, or two proofs disagree.
        """
        ...
