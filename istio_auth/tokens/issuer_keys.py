"""IssuerKeys: the keys of one issuer, fetched again and again, and kept for a time if fetching fails.

There is one fetch at a time, however many callers wait for it. Keys are fetched again at the age that their server
says, within bounds; soon after a failure, with a wait that grows each time; and when a token names a key that is not
among them, but not within `cooldown` of the last fetch. That pause is the only defence against made-up key names. It
needs no memory, and after it the next token finds a key that is really new.

In an outage the last good keys count for `keep` and no longer, because a key that was revoked meanwhile counts too.
Before the first keys have come, no token is accepted.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

from istio_auth.clock import Clock, in_words
from istio_auth.errors import ConfigurationError, IstioAuthError, NotReady
from istio_auth.jwks import KeySet
from istio_auth.rotation import retry_delay
from istio_auth.tokens.fetch import FetchedKeys

_LOG = logging.getLogger(__name__)
_JITTER = 0.1


@dataclass(frozen=True, slots=True)
class KeySetTimes:
    """How often keys are fetched, and for how long they count.

    Args:
        every: the age at which keys are fetched again if their server does not say.
        soonest: the lowest such age, if the server says a lower one.
        latest: the highest such age, if the server says a higher one.
        retry: the wait after a first failure; it doubles up to `every`.
        cooldown: the shortest time between two fetches when tokens name unknown keys.
        deadline: how long a fetch may take, including discovery.
        keep: how long the last keys count if no fetch succeeds.

    Raises:
        ConfigurationError: a time is not positive, or they are not `soonest <= latest < keep`.
    """

    every: timedelta = timedelta(minutes=5)
    soonest: timedelta = timedelta(minutes=1)
    latest: timedelta = timedelta(hours=1)
    retry: timedelta = timedelta(seconds=1)
    cooldown: timedelta = timedelta(seconds=10)
    deadline: timedelta = timedelta(seconds=5)
    keep: timedelta = timedelta(days=7)

    def __post_init__(self) -> None:
        shortest = min(self.every, self.soonest, self.retry, self.cooldown, self.deadline)
        if shortest <= timedelta() or self.latest < self.soonest or self.keep <= self.latest:
            raise ConfigurationError("the times of key sets are longer than nothing: soonest <= latest < keep")


@dataclass(frozen=True, slots=True)
class IssuerStatus:
    """The status of the keys of an issuer.

    Args:
        issuer: the issuer.
        ready: whether its tokens can be verified.
        keys: how many keys are held.
        left_out: for each entry of its key set that is not among them, the reason.
        age: how long ago they were fetched; None if they never were, or are given inline.
        trouble: why the last fetch failed, or why there was none; empty if it succeeded.
    """

    issuer: str
    ready: bool
    keys: int = 0
    left_out: tuple[str, ...] = ()
    age: timedelta | None = None
    trouble: str = ""


class IssuerKeys:
    """Keeps the keys of one issuer. Lives on one event loop.

    Args:
        issuer: the issuer.
        fetch: fetches its keys, or raises `IstioAuthError`.
        clock: tells how old they are.
        times: when they are fetched, and how long they count.
    """

    def __init__(
        self, issuer: str, fetch: Callable[[], Awaitable[FetchedKeys]], *, clock: Clock, times: KeySetTimes
    ) -> None:
        self._issuer = issuer
        self._fetch = fetch
        self._clock = clock
        self._times = times
        self._keys: KeySet | None = None
        self._fetched_at = clock.now()
        self._failures = 0
        self._trouble = "nobody fetches them: enter the token verifier first (`async with`)"
        self._fetching = False
        self._begun = self._due = 0.0  # by the loop's clock: when the last fetch began, and when the next is due
        self._wanted = asyncio.Event()
        self._ended = asyncio.Event()

    def start(self) -> asyncio.Task[None]:
        """Fetch the keys again and again, until the task that is returned is cancelled."""
        self._fetching, self._trouble = True, "the first fetch has not ended yet"
        task = asyncio.create_task(self._run(), name=f"keys of {self._issuer}")
        task.add_done_callback(self._close)  # also if it is cancelled before it has run at all
        return task

    async def _run(self) -> None:
        """Fetch the keys whenever that is due."""
        while True:
            wait = await self._attempt()
            self._wake()
            await self._pause(wait)

    def _close(self, _task: asyncio.Task[None]) -> None:
        self._fetching = False
        self._keys, self._trouble = None, "the token verifier is closed"
        self._wake()

    async def keys(self) -> KeySet:
        """The keys that count now. While the very first fetch is going on, it waits for that.

        Raises:
            NotReady: there are none, or they are too old.
        """
        if self._keys is None and self._fetching and not self._failures:
            await self._ended.wait()
        if self._keys is None:
            raise self._not_ready(f"the keys of the token issuer {self._issuer} could not be fetched: {self._trouble}")
        if (age := self._clock.now() - self._fetched_at) > self._times.keep:
            raise self._not_ready(
                f"the keys of the token issuer {self._issuer} are from {in_words(age)} ago: {self._trouble}"
            )
        return self._keys

    async def newer(self, than: KeySet) -> KeySet | None:
        """Fetch again, unless it is too soon, because `than` has no key for a token; None if nothing has changed."""
        if self._keys is than and (self._fetching or self._now() >= self._begun + self._times.cooldown.total_seconds()):
            self._wanted.set()
            await self._ended.wait()
        return None if self._keys is than else self._keys

    def status(self) -> IssuerStatus:
        """The present status."""
        if self._keys is None:
            return IssuerStatus(self._issuer, ready=False, trouble=self._trouble)
        age = self._clock.now() - self._fetched_at
        ready = age <= self._times.keep
        return IssuerStatus(self._issuer, ready, len(self._keys.keys), self._keys.left_out, age, self._trouble)

    async def _attempt(self) -> timedelta:
        """Fetch the keys once, and return how long to wait then."""
        self._fetching, self._begun = True, self._now()
        try:
            async with asyncio.timeout(self._times.deadline.total_seconds()):
                fetched = await self._fetch()
        except TimeoutError:
            return self._fail(f"no whole answer within {in_words(self._times.deadline)}")
        except IstioAuthError as error:
            return self._fail(str(error))
        except Exception as error:  # noqa: BLE001  # whatever it is, it must not be the last fetch
            _LOG.exception("the keys of the token issuer %s: a fault in fetching them", self._issuer)
            return self._fail(repr(error))
        finally:
            self._fetching = False
            self._wanted.clear()
        return self._take(fetched)

    def _take(self, fetched: FetchedKeys) -> timedelta:
        if self._failures:
            _LOG.info("the keys of the token issuer %s are fetched again", self._issuer)
        if self._keys != fetched.keys:  # else the old object stays, and tokens verified with it stay known
            self._keys = fetched.keys
            if not fetched.keys.keys:
                _LOG.warning("the token issuer %s has no usable key: none of its tokens is accepted", self._issuer)
        self._fetched_at, self._failures, self._trouble = self._clock.now(), 0, ""
        age = self._times.every if fetched.good_for is None else fetched.good_for
        age = min(max(age, self._times.soonest), self._times.latest)
        return age * (1 - _JITTER * random.random())  # noqa: S311  # nobody gains by guessing it

    def _fail(self, trouble: str) -> timedelta:
        if trouble != self._trouble:
            _LOG.warning("the keys of the token issuer %s can not be fetched: %s", self._issuer, trouble)
        self._trouble = trouble
        self._failures += 1
        return retry_delay(
            self._failures,
            draw=random.random(),  # noqa: S311  # the same
            first=self._times.retry,
            longest=self._times.every,
        )

    async def _pause(self, wait: timedelta) -> None:
        self._due = self._now() + wait.total_seconds()
        with suppress(TimeoutError):
            async with asyncio.timeout_at(self._due):
                await self._wanted.wait()

    def _wake(self) -> None:
        """Wake all who wait for the end of a fetch."""
        self._ended.set()
        self._ended = asyncio.Event()

    def _not_ready(self, message: str) -> NotReady:
        wait = max(1, round(self._due - self._now()))
        return NotReady(message, retry_after=timedelta(seconds=wait))

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
