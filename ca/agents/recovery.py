"""The proof by node key: an agent whose SVID has lapsed shows the key it enrolled with, and is back.

The agent asks for a nonce, signs it together with its name and its new CSR (`istio_auth.recovery`), and sends the
public node key along; we know that key by its hash. An agent can recover until a window after the end of its last SVID
is over (30 days unless the operator says otherwise), or after its enrolment if it never had one. It can recover before
the end too, for it may have lost its SVID. An evicted agent can not.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field
from datetime import timedelta

from cryptography.exceptions import InvalidSignature

from ca.agents.agent import AgentRecord, agent_name
from ca.agents.challenge import Challenges
from ca.agents.folder import AgentFolder
from ca.attest import Attested
from istio_auth.clock import Clock, in_words
from istio_auth.door import TLSCaller
from istio_auth.errors import (
    ConfigurationError,
    InvalidPEM,
    KeyRejected,
    MalformedError,
    MissingError,
    NotAuthenticated,
)
from istio_auth.keys import PublicKey, check_signature, fingerprint
from istio_auth.pem import read_der_public_key
from istio_auth.recovery import recovery_message
from istio_auth.spiffe_id import SpiffeID, TrustDomain

METHOD = "node-key"
DEFAULT_WINDOW = timedelta(days=30)
_MAX_SIGNATURE = 2048


@dataclass(frozen=True, slots=True)
class RecoveryProof:
    """What an agent sends to come back.

    Args:
        spiffe_id: who it says it is.
        nonce: as we gave it.
        node_key: SubjectPublicKeyInfo in DER.
        signature: over `recovery_message`.
        csr: the signing request for its new SVID, in DER.
    """

    spiffe_id: SpiffeID
    nonce: bytes
    node_key: bytes
    signature: bytes = field(repr=False)
    csr: bytes


class Recovery:
    """Attests agents that come back by their node keys. For one event loop.

    Args:
        trust_domain: the trust domain of the agents.
        agents: knows their node keys.
        clock: tells the time.
        window: how long after the end of its last SVID an agent can come back.
    """

    def __init__(
        self, trust_domain: TrustDomain, agents: AgentFolder, clock: Clock, *, window: timedelta = DEFAULT_WINDOW
    ) -> None:
        self._trust_domain = trust_domain
        self._agents = agents
        self._clock = clock
        self._window = window
        self._challenges = Challenges()

    def challenge(self, spiffe_id: SpiffeID) -> bytes:
        """A nonce for an agent. The answer does not tell whether there is such an agent.

        Raises:
            MalformedError: that is not the SPIFFE ID of an agent in our trust domain.
        """
        self._name(spiffe_id)
        return self._challenges.nonce(spiffe_id, self._clock.now())

    def attest(self, proof: RecoveryProof, caller: TLSCaller) -> Attested:
        """Which agent proved its node key. Uses the nonce up.

        Raises:
            MalformedError: a part of the proof is not what it should be.
            NotAuthenticated: the proof is not good, the agent is not enrolled, or the window is over.
            NotAuthorized: the agent was evicted.
            Exhausted: too many agents recover at once.
            NotReady: the look-up failed.
        """
        name, now = self._name(proof.spiffe_id), self._clock.now()
        self._challenges.check(proof.nonce, proof.spiffe_id, now)
        record = self._record(name)
        _check_key(record, proof)
        record.check_welcome()  # only now: a stranger shall not learn which agents there are
        self._check_window(record)
        self._challenges.use_up(proof.nonce, proof.spiffe_id, now)
        return Attested(proof.spiffe_id, METHOD, details={"address": caller.address, "node_key": record.node_key})

    def _name(self, spiffe_id: SpiffeID) -> str:
        name = agent_name(spiffe_id)
        if name is None or spiffe_id.trust_domain != self._trust_domain:
            raise MalformedError(f"{spiffe_id} is no agent of {self._trust_domain}", public="no agent's SPIFFE ID")
        return name

    def _record(self, name: str) -> AgentRecord:
        try:
            return self._agents.find(name)
        except (MissingError, ConfigurationError) as error:
            raise NotAuthenticated(f"agent {name[:128]} can not come back: {error}") from error

    def _check_window(self, record: AgentRecord) -> None:
        lapsed = self._clock.now() - (record.svid_end or record.enrolled_at)
        if lapsed > self._window:
            raise NotAuthenticated(
                f"agent {record.name} lapsed {in_words(lapsed)} ago, and the window is {in_words(self._window)}: it "
                "needs a new join token"
            )


def _check_key(record: AgentRecord, proof: RecoveryProof) -> None:
    key = _node_key(proof)
    if not hmac.compare_digest(fingerprint(key), record.node_key):
        raise NotAuthenticated(f"agent {record.name} enrolled with another node key than the one presented")
    try:
        check_signature(key, proof.signature, recovery_message(proof.spiffe_id, proof.nonce, proof.csr))
    except InvalidSignature as error:
        raise NotAuthenticated(f"agent {record.name}: the proof is not signed by its node key") from error


def _node_key(proof: RecoveryProof) -> PublicKey:
    if len(proof.signature) > _MAX_SIGNATURE:
        raise MalformedError("the signature is too long", public="malformed proof")
    try:
        return read_der_public_key(proof.node_key)
    except (InvalidPEM, KeyRejected) as error:
        raise MalformedError(f"the node key: {error}", public="malformed node key") from error
