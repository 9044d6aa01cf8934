"""Nonces for agents that prove their node key: each is good for one agent, once, and for a minute.

Anybody may ask for a nonce, so giving one out must cost nothing: the server keeps none of them. A nonce carries its
time and a MAC over it and the agent, by a key that lives and dies with this process:

    nonce = time (8) | random (8) | HMAC-SHA-256(key, time | random | SPIFFE ID) [:16]

Only used nonces are kept, until they would have ended. Only a caller that proved a node key uses one up, so a flood of
strangers fills no memory and pushes nobody's nonce out.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections import OrderedDict
from datetime import UTC, datetime, timedelta

from istio_auth.errors import Exhausted, NotAuthenticated
from istio_auth.recovery import NONCE_BYTES
from istio_auth.spiffe_id import SpiffeID

LIFETIME = timedelta(seconds=60)
_MAX_USED = 10_000
_MICROSECOND = timedelta(microseconds=1)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Challenges:
    """Gives out nonces and accepts each once. For one event loop."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)
        self._used: OrderedDict[bytes, datetime] = OrderedDict()

    def nonce(self, spiffe_id: SpiffeID, now: datetime) -> bytes:
        """A nonce for an agent."""
        head = ((now - _EPOCH) // _MICROSECOND).to_bytes(8, "big") + secrets.token_bytes(8)
        return head + self._mac(head, spiffe_id)

    def check(self, nonce: bytes, spiffe_id: SpiffeID, now: datetime) -> None:
        """Check that a nonce is ours, for this agent, still good, and was not used.

        Raises:
            NotAuthenticated: it is not.
        """
        head, mac = nonce[:16], nonce[16:]
        if len(nonce) != NONCE_BYTES or not hmac.compare_digest(mac, self._mac(head, spiffe_id)):
            raise NotAuthenticated(f"{spiffe_id}: the nonce is not one of this server's for this agent")
        age = now - (_EPOCH + int.from_bytes(head[:8], "big") * _MICROSECOND)
        if not timedelta() <= age < LIFETIME:
            raise NotAuthenticated(f"{spiffe_id}: the nonce is {age.total_seconds():.0f} seconds old")
        if nonce in self._used:
            raise NotAuthenticated(f"{spiffe_id}: the nonce was used before")

    def use_up(self, nonce: bytes, spiffe_id: SpiffeID, now: datetime) -> None:
        """Use a nonce up, for a caller that signed it with the agent's node key.

        Raises:
            NotAuthenticated: it is not good (see `check`).
            Exhausted: too many were used within its lifetime.
        """
        self.check(nonce, spiffe_id, now)
        while self._used and next(iter(self._used.values())) <= now:
            self._used.popitem(last=False)
        if len(self._used) >= _MAX_USED:
            raise Exhausted("too many agents recover at once", retry_after=LIFETIME)
        self._used[nonce] = now + LIFETIME

    def _mac(self, head: bytes, spiffe_id: SpiffeID) -> bytes:
        return hmac.digest(self._key, head + str(spiffe_id).encode(), hashlib.sha256)[:16]
