"""An API server that misbehaves on request, and the way to it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from ca.platform.kubernetes.api.client import KubernetesAPI
from ca.platform.kubernetes.api.connection import connected
from tests.fakes.api_server import FakeAPIServer


@pytest.fixture
async def server() -> AsyncIterator[FakeAPIServer]:
    async with FakeAPIServer() as server:
        yield server


@pytest.fixture
async def api(server: FakeAPIServer, tmp_path: Path) -> AsyncIterator[KubernetesAPI]:
    async with connected(server.kubeconfig(tmp_path / "kubeconfig")) as api:
        yield api


@pytest.fixture
async def hasty(server: FakeAPIServer, tmp_path: Path) -> AsyncIterator[KubernetesAPI]:
    """The way to it for those who do not wait long."""
    async with connected(server.kubeconfig(tmp_path / "kubeconfig"), deadline=timedelta(seconds=0.3)) as api:
        yield api
