"""Blocking work on a thread that is always waited for: whoever is cancelled meanwhile ends only when it is done.

A thread can not be cancelled. One that still writes into a folder would make it again after it was removed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


async def done_in_a_thread(work: Callable[[], Result]) -> Result:
    """What the work returns."""
    doing = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(doing)
    except asyncio.CancelledError:
        await asyncio.wait([doing])
        if not doing.cancelled():
            doing.exception()  # it has been looked at: there is nobody left to tell
        raise
