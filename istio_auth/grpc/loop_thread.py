"""An asyncio event loop in a thread, for work that must go on beside code that blocks, or beside another loop.

Door and portal rely on how asyncio's own loop ends and pauses connections; uvloop loses bytes there. So if the program
runs uvloop, they run in such a thread, and gRPC stays on the program's loop.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
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
        """Run this on the thread's loop, and wait for its result."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    @contextmanager
    def using(self, resource: AbstractAsyncContextManager[Result]) -> Iterator[Result]:
        """Enter this resource on the thread's loop, and leave it at the end."""
        entered = self.run(_entering(resource))
        try:
            yield entered
        finally:
            self.run(_leaving(resource))

    @asynccontextmanager
    async def using_beside(self, resource: AbstractAsyncContextManager[Result]) -> AsyncIterator[Result]:
        """As `using`, without blocking the caller's loop."""
        entered = await there(_entering(resource), self._loop)
        try:
            yield entered
        finally:
            await there(_leaving(resource), self._loop)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:  # whatever the policy says
            runner.run(self._until_closed())  # the runner ends the tasks that are left, and threads that resolve names

    async def _until_closed(self) -> None:
        self._loop, self._closing = asyncio.get_running_loop(), asyncio.Event()
        self._started.set()
        await self._closing.wait()


def is_own(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether a loop is asyncio's own."""
    return isinstance(loop, asyncio.SelectorEventLoop)


async def there(work: Coroutine[object, object, Result], loop: asyncio.AbstractEventLoop) -> Result:
    """Run this on a loop in another thread, and return its result."""
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, loop))


@asynccontextmanager
async def on_own_loop(resource: AbstractAsyncContextManager[Result], name: str) -> AsyncIterator[Result]:
    """Use this on the running loop if that is asyncio's own, else on a loop in a new thread with this name."""
    if is_own(asyncio.get_running_loop()):
        async with resource as entered:
            yield entered
        return
    with LoopThread(name) as thread:
        async with thread.using_beside(resource) as entered:
            yield entered


async def _entering(resource: AbstractAsyncContextManager[Result]) -> Result:
    return await resource.__aenter__()


async def _leaving(resource: AbstractAsyncContextManager[object]) -> None:
    await resource.__aexit__(None, None, None)
