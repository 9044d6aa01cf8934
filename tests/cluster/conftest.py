"""A control plane for the tests of this process, and for each test a namespace of its own in it."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.cluster.build import built, servers
from tests.cluster.client import Client
from tests.cluster.control_plane import ControlPlane
from tests.cluster.waiting import appears

_HERE = Path(__file__).parent
_LONGEST = 600  # seconds for a test, and the servers that start with it


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All tests of this folder are of the group `cluster`, and servers of a busy machine have their time to start."""
    for item in items:
        if item.path.is_relative_to(_HERE):
            item.add_marker(pytest.mark.cluster)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(_LONGEST))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Build the servers where no test's time limit runs and nothing hides the progress."""
    wanted = any("control_plane" in name for item in session.items for name in getattr(item, "fixturenames", ()))
    if wanted and built() is None and not session.config.option.collectonly:
        capture = session.config.pluginmanager.getplugin("capturemanager")
        with capture.global_and_fixture_disabled():
            servers()


@pytest.fixture(scope="session")
def control_plane() -> Iterator[ControlPlane]:
    """The control plane that tests share, each in its own namespaces; nobody may harm it."""
    with ControlPlane() as plane:
        yield plane


@pytest.fixture
def own_control_plane() -> Iterator[ControlPlane]:
    """A control plane for this test alone, which may stop and break it."""
    with ControlPlane() as plane:
        yield plane


@pytest.fixture
def controllers(control_plane: ControlPlane) -> None:
    """For tests of what a controller manager does: default service accounts, garbage collection, ends of namespaces."""
    if not control_plane.has_controllers:
        pytest.skip(f"there is no kube-controller-manager in {control_plane.binaries}")


@pytest.fixture
async def admin(control_plane: ControlPlane) -> AsyncIterator[Client]:
    """The administrator of the shared control plane."""
    control_plane.require_alive()
    async with control_plane.admin() as client:
        yield client


@pytest.fixture
async def namespace(control_plane: ControlPlane, admin: Client) -> AsyncIterator[str]:
    """A new namespace with what a controller manager makes in it; afterwards it goes away in its own time."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    await admin.create_namespace(name)
    if control_plane.has_controllers:  # else who counts service accounts counts this one or not
        await appears(admin, f"/api/v1/namespaces/{name}/serviceaccounts/default")
    yield name
    await admin.delete(f"/api/v1/namespaces/{name}")
