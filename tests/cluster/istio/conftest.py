"""A control plane with a real istiod on it, and a node with our agent's pod and a workload's."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from tests.cluster.control_plane import ControlPlane
from tests.cluster.istio.build import ISTIO
from tests.cluster.istio.istiod import Istiod, Mesh


def pytest_collection_finish(session: pytest.Session) -> None:
    """Build the programs where no test's time limit runs and nothing hides the progress."""
    here = any(item.path.is_relative_to(__file__.rpartition("/")[0]) for item in session.items)
    if here and ISTIO.built() is None and not session.config.option.collectonly:
        capture = session.config.pluginmanager.getplugin("capturemanager")
        with capture.global_and_fixture_disabled():
            ISTIO.programs()


@pytest.fixture(scope="module")
def istio_plane() -> Iterator[ControlPlane]:
    """A control plane of this file's own: istiod puts its roots into every namespace."""
    with ControlPlane() as plane:
        yield plane


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh(istio_plane: ControlPlane) -> AsyncIterator[Mesh]:
    """The mesh that the tests of a file share."""
    async with istio_plane.admin() as admin:
        yield await Mesh.on(istio_plane, admin, await Istiod.on(istio_plane, admin))
