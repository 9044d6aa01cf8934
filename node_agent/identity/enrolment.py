"""The three ways to an SVID of an agent that joined by a token: renew, enrol, recover; which when (pure), and each.

| situation                                  | ways, in this order                                                     |
|--------------------------------------------|-------------------------------------------------------------------------|
| an SVID that lives                         | renew with it; if the CA does not accept it any more, recover           |
| none that lives, a join token not yet used | enrol; if the CA refuses the token (used, but not noted here), recover  |
| none that lives, the token was used here   | recover; else enrol (a foreign CA's tokens may be good more than once)  |
| none that lives, no token                  | recover                                                                 |

The next way is tried at once when the CA *refused* the one before. A CA that is away is not asked in another way: it
is asked again later.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable
from datetime import timedelta

import structlog

from istio_auth.clock import Clock
from istio_auth.errors import (
    ConfigurationError,
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
    return isinstance(error, NotAuthenticated | NotAuthorized | MissingError | MalformedError)


class Enrolment:
    """Goes these ways.

    Args:
        spiffe_id: who we are.
        node_key: what we enrol with and come back by.
        state: where is noted which token was used.
        trust: whom we trust.
        proven: the CA, over connections on which we present our SVID.
        unproven: the CA, over connections on which we present none.
        read_token: the join token, if there is one now; blocks.
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
        read_token: Callable[[], str | None],
        ttl: timedelta | None,
        clock: Clock,
    ) -> None:
        self.spiffe_id = spiffe_id
        self._node_key, self._state, self._trust = node_key, state, trust
        self._proven, self._unproven, self._read_token = proven, unproven, read_token
        self._ttl, self._clock = ttl, clock
        self._token = Token.NONE  # when we last tried

    async def obtain(self, *, lives: bool) -> X509SVID:
        """A new SVID, by the first way that the CA takes (see `node_agent.identity.identity.Enrolling`).

        Raises:
            BadAnswer: the CA answered with something that is none.
            IstioAuthError: the CA refused each way, or is away.
        """
        self._token = Token.NONE if lives else await self.token()
        order = ways(lives=lives, token=self._token)
        for way in order[:-1]:
            try:
                return await self._go(way)
            except IstioAuthError as error:
                if not is_refusal(error):
                    raise
                log.warning(
                    "the CA refused one way to our own SVID; the next is tried", way=way.value, reason=str(error)
                )
        try:
            return await self._go(order[-1])
        except NotAuthenticated as error:
            if not lives and Way.ENROL not in order:
                raise NotAuthenticated(f"{error}; and there is no join token to enrol with") from error
            raise

    async def has_news(self) -> bool:
        """Whether a join token has come that was not there when we last tried."""
        return self._token is not Token.UNUSED and await self.token() is Token.UNUSED

    async def token(self) -> Token:
        """What is known of the join token now; one that can not be used is told, and counts as none."""
        try:
            token = await asyncio.to_thread(self._read_token)
        except IstioAuthError as error:
            log.warning("the join token can not be used", reason=str(error))
            return Token.NONE
        if token is None:
            return Token.NONE
        return Token.USED if await asyncio.to_thread(self._state.is_spent, token) else Token.UNUSED

    async def _go(self, way: Way) -> X509SVID:
        if way is Way.RENEW:
            return await self._renew()
        return await (self._enrol() if way is Way.ENROL else self._recover())

    async def _renew(self) -> X509SVID:
        key = new_private_key()
        return await self._signed(self._proven, self._request(key), key)

    async def _enrol(self) -> X509SVID:
        if (token := await asyncio.to_thread(self._read_token)) is None:
            raise ConfigurationError("the join token is gone")
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
