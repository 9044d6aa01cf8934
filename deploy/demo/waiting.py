"""Waiting for what other programs do: they give no event, so one looks again and again, but not for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable


async def holds_within(seconds: float, condition: Callable[[], Awaitable[bool]], *, every: float = 0.05) -> bool:
    """Whether a condition comes true in time.

    Args:
        seconds: how long to look.
        condition: what shall hold.
        every: how many seconds to wait between two looks.
    """
    clock = asyncio.get_running_loop().time
    deadline = clock() + seconds
    while not await condition():
        if clock() > deadline:
            return False
        await asyncio.sleep(every)
    return True
