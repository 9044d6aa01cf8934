"""Waiting for what the API server will tell sooner or later, with a deadline and without a guess how long it takes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

Seen = TypeVar("Seen")


async def eventually(look: Callable[[], Awaitable[Seen | None]], *, within: float = 20) -> Seen:
    """Look again and again until something is seen that counts as true; that.

    Raises:
        TimeoutError: nothing was within so many seconds; it tells what was seen last.
    """
    seen: Seen | None = None
    try:
        async with asyncio.timeout(within):
            while not (seen := await look()):  # noqa: ASYNC110  # what is waited for sets no event
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise TimeoutError(f"not within {within} s; seen last: {seen!r}") from None
    return seen
