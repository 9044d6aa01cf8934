"""A Workload API for each test, which listens but says nothing yet."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.workload_api import FakeWorkloadAPI


@pytest.fixture
def api(tmp_path: Path) -> Iterator[FakeWorkloadAPI]:
    with FakeWorkloadAPI(tmp_path / "agent.sock") as found:
        yield found
