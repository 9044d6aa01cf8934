"""A door with a server behind it; and no failure in a callback of the loop goes unnoticed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from istio_auth.door import Door
from istio_auth.errors import IstioAuthError
from tests.fakes.private_server import PrivateServer


@pytest.fixture(autouse=True)
async def quiet_loop() -> AsyncIterator[None]:
    """Whatever strangers do, nothing of ours fails in the background."""
    failures: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: failures.append(context))
    yield
    assert not failures


@pytest.fixture
def refusals() -> list[tuple[str, IstioAuthError]]:
    """What the door told of those it turned away."""
    return []


@pytest.fixture
async def door(refusals: list[tuple[str, IstioAuthError]]) -> AsyncIterator[Door]:
    async with Door(on_refused=lambda listener, reason: refusals.append((listener, reason))) as door:
        yield door


@pytest.fixture
async def server(door: Door) -> AsyncIterator[PrivateServer]:
    async with PrivateServer(door) as server:
        yield server
