"""Decides who may have which identity, on every platform: three rules, and no others. Kubernetes adds some for tokens.

1. An agent may have its own identity; an evicted one only by a single-use proof: a new join token.
2. An agent may have, for its workloads, the identities that are registered for it.
3. A workload that proves an identity by certificate may have the same identity again (Istio's mutual TLS renewal),
   unless certificates for it were issued through an agent that was evicted, and one of them may still be alive.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

from ca.agents.agent import Evictions, agent_name
from ca.attest import Attested
from ca.registrations.table import Grants
from ca.registry import Grant
from istio_auth.errors import NotAuthorized
from istio_auth.spiffe_id import SpiffeID, TrustDomain


class EntitledIdentities:
    """The `Registry` over registrations and enrolled agents.

    Args:
        trust_domain: the only trust domain whose identities are granted.
        registrations: the present registrations.
        evictions: tells who is shut out now.
        longest_ttl: how long after an agent's eviction a certificate that was issued through it can still be alive.
        renewal_needs_registration: whether rule 3 holds only for registered identities.
    """

    def __init__(
        self,
        trust_domain: TrustDomain,
        registrations: Grants,
        evictions: Callable[[], Evictions],
        *,
        longest_ttl: timedelta,
        renewal_needs_registration: bool = False,
    ) -> None:
        self._trust_domain = trust_domain
        self._registrations = registrations
        self._evictions = evictions
        self._longest_ttl = longest_ttl
        self._renewal_needs_registration = renewal_needs_registration

    def grant(self, attested: Attested, wanted: SpiffeID, now: datetime) -> Grant:
        """What this caller may have of the identity it asks for (see `Registry`)."""
        if wanted.trust_domain != self._trust_domain:
            raise NotAuthorized(f"{wanted} is not in the trust domain {self._trust_domain}")
        agent = agent_name(attested.spiffe_id)
        if agent is None:
            return self._renewal(attested, wanted, now)
        invited = attested.single_use and wanted == attested.spiffe_id  # its attestor has judged the eviction
        if agent in self._evictions().since and not invited:
            raise NotAuthorized(f"agent {agent} was evicted")
        if wanted == attested.spiffe_id:
            return Grant(wanted)
        if (other := agent_name(wanted)) is not None:
            raise NotAuthorized(f"agent {agent} asks to be agent {other}: its proof is good for its own name only")
        if (grant := self._registrations.grant_of(wanted, agent=agent)) is None:
            raise NotAuthorized(f"{wanted} is not registered for agent {agent}")
        return grant

    def _renewal(self, attested: Attested, wanted: SpiffeID, now: datetime) -> Grant:
        if wanted != attested.spiffe_id:
            raise NotAuthorized(f"{attested.spiffe_id} is no agent and can not ask for {wanted}")
        evicted_at = self._evictions().identities.get(wanted)
        if evicted_at is not None and now <= evicted_at + self._longest_ttl:
            raise NotAuthorized(f"certificates for {wanted} were issued through an agent that was evicted since")
        grant = self._registrations.grant_of(wanted)
        if grant is None and self._renewal_needs_registration:
            raise NotAuthorized(f"{wanted} is not registered, and only registered identities may renew themselves")
        return grant or Grant(wanted)
