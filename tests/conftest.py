"""The few fixtures that every kind of test shares."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator

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


@pytest.fixture(autouse=True)
def signals_as_they_were() -> Generator[None]:
    """What a test holds back of signals must not hold for the programs that later tests start."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    yield
    after = signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert after == before, "the test left signals blocked"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI a test that can not run is a failure: nothing may pass by being left out."""
    report = yield
    if os.environ.get("CI") and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, which CI does not allow: {report.longrepr}"
    return report
