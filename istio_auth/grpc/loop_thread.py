"""An event loop in a thread of its own, for what must go on beside code that blocks."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Self, TypeVar

Result = TypeVar("Result")


class LoopThread:
    """Runs coroutines for threads that have no event loop. A context manager; a thread does not survive a fork.

    Args:
        name: the thread's name.
    """

    def __init__(self, name: str) -> None:
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._started = threading.Event()
        self._loop: asyncio.AbstractEventLoop
        self._closing: asyncio.Event

    def __enter__(self) -> Self:
        self._thread.start()
        self._started.wait()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join()

    def run(self, work: Coroutine[object, object, Result]) -> Result:
        """Run this there, and wait for what comes of it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    @contextmanager
    def using(self, resource: AbstractAsyncContextManager[Result]) -> Iterator[Result]:
        """Enter this there, and leave it at the end."""
        entered = self.run(_entering(resource))
        try:
            yield entered
        finally:
            self.run(_leaving(resource))

    def _run(self) -> None:
        asyncio.run(self._until_closed())  # which ends what is left over, and the threads that resolve names

    async def _until_closed(self) -> None:
        self._loop, self._closing = asyncio.get_running_loop(), asyncio.Event()
        self._started.set()
        await self._closing.wait()


async def _entering(resource: AbstractAsyncContextManager[Result]) -> Result:
    return await resource.__aenter__()


async def _leaving(resource: AbstractAsyncContextManager[object]) -> None:
    await resource.__aexit__(None, None, None)
