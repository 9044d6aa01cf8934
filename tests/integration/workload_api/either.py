"""Both clients of the Workload API behind one face, so that each test is one for both."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Generic, TypeVar

from istio_auth.errors import IstioAuthError
from istio_auth.workload_api import BlockingWorkloadAPIClient, WorkloadAPIClient

Value = TypeVar("Value")
PATIENCE = timedelta(seconds=60)


@dataclass
class Watched(Generic[Value]):
    """What a watch has given so far."""

    values: list[Value] = field(default_factory=list)
    errors: list[IstioAuthError] = field(default_factory=list)
    end: BaseException | None = None
    over: bool = False


class EitherClient:
    """Calls a method of the client by its name."""

    def __init__(self, client: BlockingWorkloadAPIClient | WorkloadAPIClient) -> None:
        self.client = client

    async def __call__(self, method: str, *args: object, **kwargs: object) -> object:
        function: Callable[..., object] = getattr(self.client, method)
        if isinstance(self.client, WorkloadAPIClient):
            return await function(*args, **kwargs)  # type: ignore[misc]  # of this client all are coroutines
        return await asyncio.to_thread(function, *args, **kwargs)

    async def close(self) -> None:
        await self("close")

    @asynccontextmanager
    async def watching(self, method: str) -> AsyncIterator[Watched[object]]:
        """What a watch gives meanwhile; it is over after that."""
        watched: Watched[object] = Watched()
        if isinstance(self.client, WorkloadAPIClient):
            task = asyncio.create_task(_follow(self.client, method, watched))
            try:
                yield watched
            finally:
                await self.close()
                async with asyncio.timeout(PATIENCE.total_seconds()):
                    await task
        else:
            thread = threading.Thread(target=_follow_blocking, args=(self.client, method, watched), daemon=True)
            thread.start()
            try:
                yield watched
            finally:
                await self.close()
                await asyncio.to_thread(thread.join, PATIENCE.total_seconds())
        assert watched.over


async def _follow(client: WorkloadAPIClient, method: str, watched: Watched[object]) -> None:
    try:
        async for value in getattr(client, method)(watched.errors.append):
            watched.values.append(value)
    except IstioAuthError as error:
        watched.end = error
    watched.over = True


def _follow_blocking(client: BlockingWorkloadAPIClient, method: str, watched: Watched[object]) -> None:
    try:
        for value in getattr(client, method)(watched.errors.append):
            watched.values.append(value)
    except IstioAuthError as error:
        watched.end = error
    watched.over = True


KINDS: Sequence[type[BlockingWorkloadAPIClient | WorkloadAPIClient]] = (
    BlockingWorkloadAPIClient,
    WorkloadAPIClient,
)
