"""ReviewCache: has each token reviewed at most once in a few seconds, however often it is shown.

What is kept is whom a token speaks for, under the SHA-256 of the token; never the token. An answer is good for a few
seconds from when its review *began*, and never beyond the end that the token itself claims: the token of a deleted pod
must die quickly. Refusals are not kept: a token that is not yet valid may become so, and strangers with garbage could
push out the answers that are worth keeping.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import NamedTuple

from ca.platform.kubernetes.callers.service_account import ServiceAccountCaller
from istio_auth.clock import Clock
from istio_auth.errors import ConfigurationError, NotReady
from istio_auth.tokens import claimed_end

DEFAULT_TTL = timedelta(seconds=5)
MAX_TTL = timedelta(seconds=30)
_MOST = 10_000  # answers; about 1 KB each


class ReviewCache:
    """Asks for reviews and remembers the answers for a moment. Lives on one event loop.

    Args:
        review: tells whom a token speaks for; raises `NotAuthenticated` or `NotReady`. It must not run for ever.
        clock: tells the time, for the end of tokens.
        monotonic: tells steady seconds, for the age of answers.
        ttl: how long an answer is good; zero to keep none.
        most: how many answers are kept.

    Attributes:
        asked: how many callers asked.
        reviewed: how many reviews that took.

    Raises:
        ConfigurationError: the answers would be kept for too long.
    """

    def __init__(
        self,
        review: Callable[[str], Awaitable[ServiceAccountCaller]],
        clock: Clock,
        monotonic: Callable[[], float],
        *,
        ttl: timedelta = DEFAULT_TTL,
        most: int = _MOST,
    ) -> None:
        if not timedelta() <= ttl <= MAX_TTL:
            raise ConfigurationError(f"reviews of tokens are kept for 0 to {MAX_TTL.seconds} seconds, not for {ttl}")
        self.asked = 0
        self.reviewed = 0
        self._review = review
        self._clock = clock
        self._monotonic = monotonic
        self._ttl = ttl
        self._most = most
        self._answers: dict[bytes, _Answer] = {}  # in the order in which they came
        self._running: dict[bytes, asyncio.Task[ServiceAccountCaller]] = {}

    async def caller(self, token: str) -> ServiceAccountCaller:
        """Whom a token speaks for.

        Raises:
            NotAuthenticated: it speaks for nobody.
            NotReady: the review could not be made.
        """
        self.asked += 1
        name = hashlib.sha256(token.encode()).digest()
        answer = self._answers.get(name)
        if answer is not None and self._monotonic() < answer.good_until:
            return answer.caller
        return await self._shared(name, token)

    async def close(self) -> None:
        """End the reviews that are running; callers that wait for one get `NotReady`."""
        running = list(self._running.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _shared(self, name: bytes, token: str) -> ServiceAccountCaller:
        """The answer of the one review of this token, which goes on even if the caller that began it is cancelled."""
        task = self._running.get(name)
        if task is None:
            task = asyncio.create_task(self._reviewed(name, token))
            self._running[name] = task
            task.add_done_callback(lambda done: self._ended(name, done))
        await asyncio.wait([task])
        if task.cancelled():
            raise NotReady("the review of the token was given up: the CA is stopping")
        return task.result()

    async def _reviewed(self, name: bytes, token: str) -> ServiceAccountCaller:
        began = self._monotonic()
        self.reviewed += 1
        caller = await self._review(token)
        self._keep(name, _Answer(caller, began + self._lifetime(token)))
        return caller

    def _ended(self, name: bytes, task: asyncio.Task[ServiceAccountCaller]) -> None:
        del self._running[name]
        if not task.cancelled():
            task.exception()  # if all who asked have left, nobody else looks at it

    def _lifetime(self, token: str) -> float:
        end = claimed_end(token)
        left = self._ttl if end is None else min(self._ttl, end - self._clock.now())
        return left.total_seconds()

    def _keep(self, name: bytes, answer: _Answer) -> None:
        now = self._monotonic()
        self._answers.pop(name, None)  # so that the new one stands last
        self._answers[name] = answer
        while self._answers:
            oldest = next(iter(self._answers))
            if len(self._answers) <= self._most and now < self._answers[oldest].good_until:
                return
            del self._answers[oldest]


class _Answer(NamedTuple):
    caller: ServiceAccountCaller
    good_until: float  # by the steady clock
