"""A CA for the tests of its services."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import structlog
from structlog.testing import LogCapture

from tests.fakes.clock import FakeClock
from tests.fakes.standalone import StandaloneCA


@pytest.fixture
def audit(monkeypatch: pytest.MonkeyPatch) -> LogCapture:
    """What the daemon logs, as events."""
    captured = LogCapture()
    monkeypatch.setattr("ca.audit._log", structlog.wrap_logger(None, processors=[captured]))
    return captured


@pytest.fixture
async def ca(tmp_path: Path, clock: FakeClock, audit: LogCapture) -> AsyncIterator[StandaloneCA]:
    ca = StandaloneCA(tmp_path, clock)
    yield ca
    await ca.platform.close()
