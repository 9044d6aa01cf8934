"""The proof by client certificate: the TLS peer is who its SVID says.

The door has verified the chain against our own bundle at the handshake. What may have changed since is checked at each
request: a connection can outlive its certificate, and an agent can be evicted meanwhile. The end of a root that a peer
sends along does not count: the root may have been renewed since, with the same key.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from cryptography import x509

from ca.agents.agent import Agents, agent_name, in_agents_room
from ca.attest import Attested, Evidence
from istio_auth.clock import Clock
from istio_auth.errors import NotAuthenticated, NotAuthorized
from istio_auth.keys import PublicKey
from istio_auth.spiffe_id import SpiffeID, TrustDomain

METHOD = "certificate"


def proven_until(chain: Sequence[x509.Certificate]) -> datetime:
    """When the proof by a chain, leaf first, ends: with the first of its certificates to end, roots not counted."""
    return min(
        certificate.not_valid_after_utc
        for place, certificate in enumerate(chain)
        if place == 0 or certificate.issuer != certificate.subject
    )


class PeerCertificate:
    """Attests callers that presented a certificate.

    Args:
        trust_domain: the only trust domain whose certificates count.
        agents: knows which agents are welcome.
        clock: tells the time.
    """

    def __init__(self, trust_domain: TrustDomain, agents: Agents, clock: Clock) -> None:
        self._trust_domain = trust_domain
        self._agents = agents
        self._clock = clock

    async def examine(self, evidence: Evidence) -> Attested | None:
        """Who the TLS peer is; None if it presented no certificate.

        Raises:
            NotAuthenticated: its certificate ended, or is another trust domain's.
            NotAuthorized: it is an agent that is not enrolled, or was evicted.
            NotReady: nobody can tell now whether the agent is welcome.
        """
        caller = evidence.caller
        if caller.spiffe_id is None:
            return None
        if caller.spiffe_id.trust_domain != self._trust_domain:
            raise NotAuthenticated(f"{caller} is not in the trust domain {self._trust_domain}")
        if self._clock.now() > proven_until(caller.chain):
            raise NotAuthenticated(f"the certificate of {caller} ended while the connection was open")
        self._check_agent(caller.spiffe_id)
        details = {"address": caller.address, "serial": f"{caller.chain[0].serial_number:x}"}
        return Attested(caller.spiffe_id, METHOD, details=details)

    async def settle(self, attested: Attested, public_key: PublicKey) -> None:
        """Nothing to do: a certificate can be shown as often as one likes."""

    def _check_agent(self, spiffe_id: SpiffeID) -> None:
        if (name := agent_name(spiffe_id)) is not None:
            self._agents.check_welcome(name)
        elif in_agents_room(spiffe_id):
            raise NotAuthorized(f"{spiffe_id} is no identity that this CA gives")
