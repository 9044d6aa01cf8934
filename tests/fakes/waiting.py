"""Waiting for what happens elsewhere, with a deadline and without a guess how long it takes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable


async def until(condition: Callable[[], object], *, within: float = 60) -> None:
    """Return when the condition holds.

    Raises:
        TimeoutError: it does not within so many seconds.
    """
    async with asyncio.timeout(within):
        while not condition():  # noqa: ASYNC110  # what is waited for sets no event
            await asyncio.sleep(0.005)


async def until_async(condition: Callable[[], Awaitable[object]], *, within: float = 60) -> None:
    """Return when the condition, which itself takes time, holds.

    Raises:
        TimeoutError: it does not within so many seconds.
    """
    async with asyncio.timeout(within):
        while not await condition():  # noqa: ASYNC110  # as above
            await asyncio.sleep(0.1)
