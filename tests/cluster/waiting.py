"""Waiting for what the API server will tell sooner or later, with a deadline and without a guess how long it takes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from tests.cluster.client import JSON, Client

Seen = TypeVar("Seen")
_WITHIN = 60.0  # seconds; a machine that is busy may be ten times slower


async def eventually(look: Callable[[], Awaitable[Seen | None]], *, within: float = _WITHIN) -> Seen:
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


async def appears(client: Client, path: str) -> JSON:
    """The object at a path, once it is there.

    Raises:
        TimeoutError: it does not come.
    """
    return await eventually(lambda: client.find(path))


async def vanishes(client: Client, path: str) -> None:
    """Return once there is no object at a path.

    Raises:
        TimeoutError: it stays.
    """
    await answers(client, 404, "GET", path)


async def answers(client: Client, status: int, method: str, path: str, body: object = None) -> JSON:
    """The answer to a request, once it has this status: an authorizer hears of changes a little later.

    Raises:
        TimeoutError: it does not get it; the message holds the last answer.
    """
    last: tuple[int, JSON] = 0, {}
    try:
        async with asyncio.timeout(_WITHIN):
            while last[0] != status:  # as fast as the server answers: it is never long
                last = await client.request(method, path, body)
    except TimeoutError:
        raise TimeoutError(f"{method} {path} is not answered with {status} but: {last}") from None
    return last[1]
