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
    """Tells threads, event loops and subscribers of each change. Usable from any thread.

    Args:
        origin: what changes, as messages name it: `the files in /etc/certs`.
    """

    def __init__(self, origin: str) -> None:
        self._origin = origin
        self._condition = threading.Condition()
        self._subscribers = Subscribers()

    @contextmanager
    def alone(self) -> Generator[None]:
        """Make a change inside this block, one at a time; those who wait see it afterwards."""
        with self._condition:
            yield
            self._condition.notify_all()

    def tell(self) -> None:
        """Call the subscribers; to be called after the `alone` block, not in it."""
        self._subscribers.tell()

    def subscribe(self, changed: Callable[[], object]) -> Callable[[], None]:
        """Call `changed` after each change, on the thread that made it; what it raises is logged.

        Returns:
            a function that ends the subscription.
        """

        def guarded() -> None:
            try:
                changed()
            except Exception:  # noqa: BLE001  # whatever it is, it must not stop the thread that makes the change
                _LOG.exception("a subscriber of %s failed", self._origin)

        return self._subscribers.add(guarded)

    def wait(self, until: Callable[[], bool], timeout: timedelta) -> None:
        """Block until this is true, or the time is over; it is asked again after each change."""
        with self._condition:
            self._condition.wait_for(until, timeout.total_seconds())

    async def wait_async(self, until: Callable[[], bool], timeout: timedelta) -> None:  # noqa: ASYNC109  # as `wait`
        """Wait until this is true, or the time is over; it is asked again after each change."""
        with self.heard() as changed, suppress(TimeoutError):
            async with asyncio.timeout(timeout.total_seconds()):
                while not until():
                    changed.clear()
                    await changed.wait()

    @contextmanager
    def heard(self) -> Generator[asyncio.Event]:
        """An event of the running loop that each change sets, whichever thread made it."""
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
        """Called in a forked child, where the thread that held our locks does not exist."""
        self._condition = threading.Condition()
        self._subscribers.after_fork()
