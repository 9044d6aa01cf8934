"""What a channel is told, and what the details of a failed call become."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta

import grpc
import pytest

from istio_auth.authorize import any_id
from istio_auth.door import Portal
from istio_auth.errors import NotReady
from istio_auth.grpc.dialling import Option, channel_options, explained, portal_to
from istio_auth.sources.memory import MemorySource


@pytest.fixture
async def portal() -> AsyncIterator[Portal]:
    made = portal_to(
        "orders.test:8443", MemorySource(), any_id(), istio_alpn=False, patience=timedelta(seconds=1), clock=None
    )
    yield made
    await made.close()


async def test_an_option_of_the_application_takes_the_place_of_ours(portal: Portal) -> None:
    ours = dict(channel_options(portal, ()))
    assert ours == {
        "grpc.max_reconnect_backoff_ms": 10_000,
        "grpc.default_authority": "orders.test:8443",
        "grpc.enable_http_proxy": 0,
    }
    theirs: list[Option] = [("grpc.default_authority", "other.test"), ("grpc.enable_retries", 0)]
    options = channel_options(portal, theirs)
    assert dict(options) == ours | dict(theirs)
    assert len(options) == 4


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED])
async def test_a_call_that_was_not_answered_tells_why(portal: Portal, code: grpc.StatusCode) -> None:
    assert explained(portal, code, "Socket closed") == "Socket closed"
    portal.last_error = NotReady("nobody there")
    assert explained(portal, code, "Socket closed") == (
        "orders.test:8443 was not reached: nobody there (gRPC says: Socket closed)"
    )


@pytest.mark.parametrize("code", [grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.CANCELLED, grpc.StatusCode.OK])
async def test_any_other_status_is_left_alone(portal: Portal, code: grpc.StatusCode) -> None:
    portal.last_error = NotReady("nobody there")
    assert explained(portal, code, "as it was") == "as it was"
