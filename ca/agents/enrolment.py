"""The proof by join token, and what its use leaves behind: an agent with a node key.

A token is looked up when the caller is attested, and used up only when the CSR has been vetted and the grant made, so
that a mistake in the request does not burn it. Then, in this order: the token is used up, which only one caller can do;
the hash of the node key is kept; the certificate is signed. If the signing fails, or the answer is lost on the way, the
agent is enrolled all the same and comes back by its node key.
"""

from __future__ import annotations

import asyncio

from ca.agents.folder import AgentFolder
from ca.agents.join_token import JoinToken, JoinTokenFolder, hash_of
from ca.attest import Attested, Evidence
from istio_auth.clock import Clock
from istio_auth.errors import MissingError
from istio_auth.keys import PublicKey, fingerprint
from istio_auth.spiffe_id import SpiffeID, TrustDomain

METHOD = "join-token"


class JoinTokenProof:
    """Attests callers that presented a join token, and enrols them.

    Args:
        trust_domain: the trust domain of the agents.
        tokens: the tokens that are good.
        agents: where enrolled agents are kept.
        clock: tells the time.
    """

    def __init__(self, trust_domain: TrustDomain, tokens: JoinTokenFolder, agents: AgentFolder, clock: Clock) -> None:
        self._trust_domain = trust_domain
        self._tokens = tokens
        self._agents = agents
        self._clock = clock

    async def examine(self, evidence: Evidence) -> Attested | None:
        """Which agent the token enrols; None if there is no token.

        Raises:
            NotAuthenticated: the bearer token is no join token, or one that is unknown, used or expired.
            NotAuthorized: the agent was evicted, and this token does not bring it back.
            NotReady: the look-up failed.
        """
        if evidence.bearer is None:
            return None
        token = await asyncio.to_thread(self._good, hash_of(evidence.bearer))
        return Attested(
            SpiffeID.for_agent(self._trust_domain, token.agent),
            METHOD,
            details={"address": evidence.caller.address, "token": token.id},
            single_use=token.hash,
        )

    async def settle(self, attested: Attested, public_key: PublicKey) -> None:
        """Use the token up and keep the node key (see `Attestor.settle`)."""
        await asyncio.to_thread(self._enrol, attested.single_use, fingerprint(public_key))

    def _good(self, token_hash: str) -> JoinToken:
        token, now = self._tokens.find(token_hash), self._clock.now()
        token.check_time(now)
        try:
            record = self._agents.find(token.agent)
        except MissingError:
            return token
        record.check_readmission(token.created_at, now)
        return token

    def _enrol(self, token_hash: str, node_key: str) -> None:
        token = self._good(token_hash)
        self._tokens.use_up(token)
        self._agents.enrol(token.agent, node_key, invited_at=token.created_at, now=self._clock.now())
