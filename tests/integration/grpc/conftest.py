"""A service to be called; and no failure in a callback of the loop goes unnoticed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from istio_auth.sources.memory import MemorySource
from tests.integration.grpc.service import CLIENT, SERVER, Refusals, Talk, holding


@pytest.fixture(autouse=True)
async def quiet_loop() -> AsyncIterator[None]:
    """Whatever happens to calls, nothing of ours fails in the background."""
    failures: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: failures.append(context))
    yield
    assert not failures


@pytest.fixture
def talk() -> Talk:
    return Talk()


@pytest.fixture
def ours() -> MemorySource:
    """What the server holds."""
    return holding(SERVER)


@pytest.fixture
def theirs() -> MemorySource:
    """What the client holds."""
    return holding(CLIENT)


@pytest.fixture
def refusals() -> Refusals:
    return Refusals()
