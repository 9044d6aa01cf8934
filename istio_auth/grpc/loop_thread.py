"""An event loop of asyncio's own in a thread, for what must go on beside code that blocks, or beside another loop.

Door and portal rely on how asyncio's own loop ends and pauses connections; uvloop loses bytes there. So under such a
loop they run in a thread as well, and gRPC stays where it is.
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

    @asynccontextmanager
    async def using_beside(self, resource: AbstractAsyncContextManager[Result]) -> AsyncIterator[Result]:
        """The same without blocking the loop of the caller."""
        entered = await there(_entering(resource), self._loop)
        try:
            yield entered
        finally:
            await there(_leaving(resource), self._loop)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:  # whatever the policy says
            runner.run(self._until_closed())  # the runner ends what is left over, and the threads that resolve names

    async def _until_closed(self) -> None:
        self._loop, self._closing = asyncio.get_running_loop(), asyncio.Event()
        self._started.set()
        await self._closing.wait()


def is_own(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether a loop is asyncio's own."""
    return isinstance(loop, asyncio.SelectorEventLoop)


async def there(work: Coroutine[object, object, Result], loop: asyncio.AbstractEventLoop) -> Result:
    """What comes of this on a loop in another thread."""
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, loop))


@asynccontextmanager
async def on_own_loop(resource: AbstractAsyncContextManager[Result], name: str) -> AsyncIterator[Result]:
    """Use this on the running loop if that is asyncio's own, else on one in a thread of this name."""
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
