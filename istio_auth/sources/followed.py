"""Followed: the base of all sources, whatever they hold: one state, replaced whole, to wait for and to follow.

The code that fills a source replaces the state, from any thread; everybody else reads one reference. A forked child
has the state, but not the threads, and its locks may be held by threads that do not exist there: so the locks are made
anew at the fork, and the threads at the first use of the source.
"""

from __future__ import annotations

import asyncio
import logging
import os
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

from istio_auth.clock import in_words
from istio_auth.errors import NotReady
from istio_auth.sources.changes import Changes

_LOG = logging.getLogger(__name__)


class FollowedState(Protocol):
    """What a source holds, and whether it works, as one immutable value."""

    @property
    def held(self) -> object | None:
        """What is held: the same object until it is replaced; None while there is nothing."""
        ...

    @property
    def trouble(self) -> str | None:
        """What is wrong at present; None if nothing is."""
        ...

    @property
    def closed(self) -> bool:
        """Whether it was closed, which is for good."""
        ...


_State = TypeVar("_State", bound=FollowedState)


class Followed(ABC, Generic[_State]):
    """The base of every source.

    Args:
        origin: where its content comes from, as messages say it: `the files in /etc/certs`.
        state: what it holds at first.
    """

    def __init__(self, origin: str, state: _State) -> None:
        self._origin = origin
        self._state = state
        self._changes = Changes(origin)
        self._forked = False
        _ALL.add(self)

    def subscribe(self, changed: Callable[[], object]) -> Callable[[], None]:
        """Call `changed` after each change, on the thread that made it; what it raises is logged.

        Returns:
            a function that ends the subscription.
        """
        self._use()
        return self._changes.subscribe(changed)

    def wait_until_ready(self, timeout: timedelta) -> None:
        """Block until there is something to serve. Not for an event loop: see `ready`.

        Raises:
            NotReady: there is nothing after this time, or the source is closed. The message says why, and what to do.
        """
        self._use()
        self._changes.wait(self._decided, timeout)
        self._refuse_unready(timeout)

    async def ready(self, timeout: timedelta) -> None:  # noqa: ASYNC109  # the same signature as wait_until_ready
        """Wait, without blocking the event loop, until there is something to serve (see `wait_until_ready`)."""
        self._use()
        await self._changes.wait_async(self._decided, timeout)
        self._refuse_unready(timeout)

    @abstractmethod
    def close(self) -> None:
        """Serve nothing any more, for good; those who wait get an error. May be called again."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.close)  # a subclass may wait for its thread

    # For subclasses ------------------------------------------------------------------------------------------------

    @abstractmethod
    def _serves(self) -> bool:
        """Whether there is something to serve."""

    @abstractmethod
    def _why_not(self, state: _State) -> str:
        """Why there is nothing to serve, and what to do."""

    def _resume(self) -> None:
        """Called in a forked child at the first use there: start the threads again. Does nothing by default."""

    def _after_fork(self) -> None:
        """Called in a forked child, where the thread that held our locks may not exist: only the forking one does."""
        self._changes.after_fork()
        self._forked = True

    def _use(self) -> _State:
        """The present state. To be called at each use of the source: it resumes the source in a forked child."""
        if self._forked:
            with self._changes.alone():
                first, self._forked = self._forked, False
            if first:
                self._resume()
        return self._state

    def _replace(self, change: Callable[[_State], _State]) -> None:
        """Replace the present state, unless the source is closed; tell the subscribers if what is held has changed."""
        with self._changes.alone():
            old = self._state
            if old.closed:
                return
            self._state = new = change(old)
        self._say_trouble(old, new)
        if new.held is not old.held or new.closed:
            self._changes.tell()

    # ---------------------------------------------------------------------------------------------------------------

    def _decided(self) -> bool:
        return self._state.closed or self._serves()

    def _refuse_unready(self, patience: timedelta) -> None:
        state = self._state
        if not self._serves():
            waited = "" if state.closed else f"not ready after {in_words(patience)}: "
            raise NotReady(waited + self._why_not(state))

    def _say_trouble(self, old: _State, new: _State) -> None:
        if new.trouble is not None and new.trouble != old.trouble:
            held = "what is held stays in use" if new.held is not None else "nothing is held"
            _LOG.warning("%s: %s (%s)", self._origin, new.trouble, held)
        elif old.trouble is not None and new.trouble is None and not new.closed:
            _LOG.info("%s: all is well again", self._origin)


_ALL: weakref.WeakSet[Followed[Any]] = weakref.WeakSet()


def _after_fork() -> None:
    for each in _ALL:
        each._after_fork()  # noqa: SLF001  # of this module


os.register_at_fork(after_in_child=_after_fork)
