"""The three ways to an SVID of an agent that joined by a token: renew, enrol, recover; which when (pure), and each.

| situation                                  | ways, in this order                                                     |
|--------------------------------------------|-------------------------------------------------------------------------|
| an SVID that lives                         | renew with it; if the CA does not accept it any more, recover           |
| none that lives, a join token not yet used | enrol; if the CA refuses the token (used, but not noted here), recover  |
| none that lives, the token was used here   | recover; else enrol (a foreign CA's tokens may be good more than once)  |
| none that lives, no token                  | recover                                                                 |

The next way is tried at once when the CA *refused* the one before. A CA that is away is not asked in another way: it
is asked again later. Who finds no way is told what became of each, and what to do, in one error.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable, Mapping
from datetime import timedelta

import structlog

from istio_auth.clock import Clock
from istio_auth.errors import (
    IstioAuthError,
    MalformedError,
    MissingError,
    NotAuthenticated,
    NotAuthorized,
)
from istio_auth.keys import PrivateKey, new_private_key, public_key_der, sign
from istio_auth.recovery import recovery_message
from istio_auth.spiffe_id import SpiffeID
from istio_auth.svid import X509SVID
from node_agent.ca_client.answer import accepted
from node_agent.ca_client.csr import request_for
from node_agent.ca_client.port import CertificateClient, SigningRequest
from node_agent.identity.state import StateFolder
from node_agent.trust import Trust

log = structlog.get_logger()


class Way(enum.Enum):
    """How to get an SVID of our own."""

    RENEW = "renew"
    ENROL = "enrol"
    RECOVER = "recover"


class Token(enum.Enum):
    """What is known of the join token."""

    NONE = "none"
    UNUSED = "unused"
    USED = "used"


_PROOFS = {Way.RENEW: "our SVID", Way.ENROL: "the join token", Way.RECOVER: "the node key"}
_REFUSALS = (NotAuthenticated, NotAuthorized, MissingError, MalformedError)


def ways(*, lives: bool, token: Token) -> tuple[Way, ...]:
    """The ways to try, in their order.

    Args:
        lives: whether the SVID held has not ended.
        token: whether there is a join token.
    """
    if lives:
        return (Way.RENEW, Way.RECOVER)
    if token is Token.NONE:
        return (Way.RECOVER,)
    return (Way.ENROL, Way.RECOVER) if token is Token.UNUSED else (Way.RECOVER, Way.ENROL)


def is_refusal(error: IstioAuthError) -> bool:
    """Whether the CA said no, so that asking in the same way again will not help."""
    return isinstance(error, _REFUSALS)


def no_way(refused: Mapping[Way, IstioAuthError], *, without_token: str | None, agent: str) -> IstioAuthError:
    """What to tell if each way was refused, as an error of the kind of the last one.

    Args:
        refused: what the CA said to each way, in the order in which they were tried.
        without_token: why no join token was shown that could have been; None if one was, or none was needed.
        agent: our name, which a new join token has to be made for.
    """
    said = [f"{_PROOFS[way]} was refused ({error})" for way, error in refused.items()]
    if without_token is not None:
        said.append(f"there is no join token to enrol with ({without_token})")
    said.append("the CA's log says why")
    if without_token is not None or Way.ENROL in refused:
        said.append(f"`ca-cli token create {agent}` makes a join token, there")
    last = list(refused.values())[-1]
    kind = next(kind for kind in _REFUSALS if isinstance(last, kind))
    return kind("; ".join(said), retry_after=last.retry_after)


class Enrolment:
    """Gets the agent an SVID in the first of these ways that the CA accepts.

    Args:
        spiffe_id: who we are.
        node_key: what we enrol with and come back by.
        state: where is noted which token was used.
        trust: whom we trust.
        proven: the CA, over connections on which we present our SVID.
        unproven: the CA, over connections on which we present none.
        read_token: the join token; blocks. Raises MissingError if there is none now.
        ttl: the lifetime to ask for; None for what the CA gives.
        clock: tells the time.
    """

    def __init__(
        self,
        spiffe_id: SpiffeID,
        node_key: PrivateKey,
        *,
        state: StateFolder,
        trust: Trust,
        proven: CertificateClient,
        unproven: CertificateClient,
        read_token: Callable[[], str],
        ttl: timedelta | None,
        clock: Clock,
    ) -> None:
        self.spiffe_id = spiffe_id
        self._node_key, self._state, self._trust = node_key, state, trust
        self._proven, self._unproven, self._read_token = proven, unproven, read_token
        self._ttl, self._clock = ttl, clock
        self._token = Token.NONE  # when we last tried
        self._without_token: str | None = None  # why there was none then

    async def obtain(self, *, lives: bool) -> X509SVID:
        """A new SVID, by the first way that the CA takes (see `node_agent.identity.identity.Enrolling`).

        Raises:
            BadAnswer: the CA answered with something that is none.
            IstioAuthError: the CA refused each way, or is away.
        """
        self._token, self._without_token = (Token.NONE, None) if lives else await self._look_at_token()
        refused: dict[Way, IstioAuthError] = {}
        for way in ways(lives=lives, token=self._token):
            try:
                svid = await self._go(way)
            except IstioAuthError as error:
                if not is_refusal(error):
                    raise
                refused[way] = error
            else:
                for each, why in refused.items():
                    log.warning(
                        "the CA refused one way to our own SVID, and took the next", way=each.value, reason=str(why)
                    )
                return svid
        raise no_way(refused, without_token=self._without_token, agent=self.spiffe_id.path.rpartition("/")[2])

    async def has_news(self) -> bool:
        """Whether a join token has come that was not there when we last tried."""
        return self._token is not Token.UNUSED and (await self._look_at_token())[0] is Token.UNUSED

    async def _look_at_token(self) -> tuple[Token, str | None]:
        """What is known of the join token now, and why there is none that can be used; None if there is."""
        try:
            token = await asyncio.to_thread(self._read_token)
        except IstioAuthError as error:
            return Token.NONE, str(error)
        return (Token.USED if await asyncio.to_thread(self._state.is_spent, token) else Token.UNUSED), None

    async def _go(self, way: Way) -> X509SVID:
        if way is Way.RENEW:
            return await self._renew()
        return await (self._enrol() if way is Way.ENROL else self._recover())

    async def _renew(self) -> X509SVID:
        key = new_private_key()
        return await self._signed(self._proven, self._request(key), key)

    async def _enrol(self) -> X509SVID:
        token = await asyncio.to_thread(self._read_token)
        svid = await self._signed(self._unproven, self._request(self._node_key), self._node_key, token=token)
        await asyncio.to_thread(self._state.note_spent, token)
        return svid

    async def _recover(self) -> X509SVID:
        key = new_private_key()
        request = self._request(key)
        nonce = await self._unproven.challenge(self.spiffe_id)
        chain = await self._unproven.recover(
            request,
            nonce=nonce,
            node_key=public_key_der(self._node_key.public_key()),
            signature=sign(self._node_key, recovery_message(self.spiffe_id, nonce, request.csr_der)),
        )
        return accepted(chain, key, self.spiffe_id, bundles=self._trust.bundles, now=self._clock.now())

    def _request(self, key: PrivateKey) -> SigningRequest:
        return request_for(self.spiffe_id, key, ttl=self._ttl, own=True)

    async def _signed(
        self, client: CertificateClient, request: SigningRequest, key: PrivateKey, *, token: str | None = None
    ) -> X509SVID:
        (outcome,) = await client.sign([request], token=token)
        if isinstance(outcome, IstioAuthError):
            raise outcome
        return accepted(outcome, key, self.spiffe_id, bundles=self._trust.bundles, now=self._clock.now())
