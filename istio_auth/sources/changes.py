"""Changes: how threads, event loops and functions learn that a source holds something else."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from datetime import timedelta

from istio_auth.subscribers import Subscribers

_LOG = logging.getLogger(__name__)


class Changes:
    """Tells of each change whoever waits for one. From any thread.

    Args:
        origin: of what, as messages say it: `the files in /etc/certs`.
    """

    def __init__(self, origin: str) -> None:
        self._origin = origin
        self._condition = threading.Condition()
        self._subscribers = Subscribers()

    @contextmanager
    def alone(self) -> Generator[None]:
        """Make a change in here, one at a time; whoever waits sees it afterwards."""
        with self._condition:
            yield
            self._condition.notify_all()

    def tell(self) -> None:
        """Call the subscribers; after the change, not in it."""
        self._subscribers.tell()

    def subscribe(self, changed: Callable[[], object]) -> Callable[[], None]:
        """Call `changed`, on whichever thread makes the change, after each; what it raises is logged.

        Returns:
            a function that ends the subscription.
        """

        def guarded() -> None:
            try:
                changed()
            except Exception:  # noqa: BLE001  # whatever it is, it must not stop who makes the change
                _LOG.exception("a subscriber of %s failed", self._origin)

        return self._subscribers.add(guarded)

    def wait(self, until: Callable[[], bool], timeout: timedelta) -> None:
        """Block until a change makes this true, or for so long."""
        with self._condition:
            self._condition.wait_for(until, timeout.total_seconds())

    async def wait_async(self, until: Callable[[], bool], timeout: timedelta) -> None:  # noqa: ASYNC109  # as `wait`
        """Wait until a change makes this true, or for so long."""
        with self.heard() as changed, suppress(TimeoutError):
            async with asyncio.timeout(timeout.total_seconds()):
                while not until():
                    changed.clear()
                    await changed.wait()

    @contextmanager
    def heard(self) -> Generator[asyncio.Event]:
        """An event of the running loop that each change sets, on whichever thread it is made."""
        loop, changed, process = asyncio.get_running_loop(), asyncio.Event(), os.getpid()

        def tell() -> None:
            # A forked child has a copy of this subscription, and shares the loop's wake-up pipe.
            if os.getpid() == process:
                with suppress(RuntimeError):  # the loop was closed
                    loop.call_soon_threadsafe(changed.set)

        end = self.subscribe(tell)
        try:
            yield changed
        finally:
            end()

    def after_fork(self) -> None:
        """In a forked child: whoever held our locks is not here."""
        self._condition = threading.Condition()
        self._subscribers.after_fork()
