"""What the tests of the examples share."""

from __future__ import annotations

import logging

import pytest

from tests.integration.examples.world import World


@pytest.fixture
def world(caplog: pytest.LogCaptureFixture) -> World:
    """A new one for each test, in which reasons can be read."""
    caplog.set_level(logging.DEBUG, "istio_auth")
    return World()
