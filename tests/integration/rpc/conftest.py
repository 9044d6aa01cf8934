"""A server with the usual limits."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.fakes.authority import FakeAuthority
from tests.integration.rpc.bench import Bench, serving


@pytest.fixture
async def bench(authority: FakeAuthority, tmp_path: Path) -> AsyncIterator[Bench]:
    async with serving(authority, tmp_path) as bench:
        yield bench
