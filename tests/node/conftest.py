"""A control plane with one node, the CA and the agent, for all tests of a run."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.cluster.client import Client
from tests.cluster.control_plane import ControlPlane
from tests.node import machine
from tests.node.build import node_programs
from tests.node.installation import Installed
from tests.node.node import Node
from tests.node.pods import Pods

_HERE = Path(__file__).parent
_LONGEST = 900  # seconds for a test, and the servers that start with it


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All tests of this folder are of the group `node`, and servers of a busy machine have their time to start."""
    for item in items:
        if item.path.is_relative_to(_HERE):
            item.add_marker(pytest.mark.node)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(_LONGEST))


@pytest.fixture(scope="session")
def node() -> Iterator[Node]:
    """The node that tests share; nobody may harm it."""
    if os.geteuid() != 0:
        pytest.skip("a node needs root")
    if (cgroup := machine.cgroup()) is None:
        pytest.skip("a node needs a machine of its own: python -m tests.node")
    programs = node_programs()
    with ControlPlane() as plane, Node(plane, programs, cgroup) as node:
        yield node


@pytest.fixture(scope="session")
def shared_installation(node: Node) -> Iterator[Installed]:
    """The CA and the agent that tests share."""
    with Installed(node) as installed:
        yield installed


@pytest.fixture
def installed(shared_installation: Installed) -> Installed:
    """The CA and the agent; both run."""
    shared_installation.require_alive()
    return shared_installation


@pytest.fixture
async def admin(node: Node) -> AsyncIterator[Client]:
    """The administrator."""
    node.plane.require_alive()
    async with node.plane.admin() as client:
        yield client


@pytest.fixture
async def pods(node: Node, admin: Client) -> AsyncIterator[Pods]:
    """Pods in a new namespace; afterwards it goes away in its own time."""
    namespace = f"test-{uuid.uuid4().hex[:8]}"
    await admin.create_namespace(namespace)
    yield Pods(node, admin, namespace)
    await admin.delete(f"/api/v1/namespaces/{namespace}")
