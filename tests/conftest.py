"""The few fixtures that every kind of test shares."""

from __future__ import annotations

import pytest

from tests.fakes.authority import FakeAuthority
from tests.fakes.clock import FakeClock


@pytest.fixture(scope="session")
def authority() -> FakeAuthority:
    """A root of `cluster.local`."""
    return FakeAuthority()


@pytest.fixture(scope="session")
def foreign_authority() -> FakeAuthority:
    """A root of another trust domain."""
    return FakeAuthority("foreign.test")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()
