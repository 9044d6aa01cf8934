"""The roots as a ClusterTrustBundle, which the API server checks for itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from uuid import uuid4

import pytest
from structlog.testing import capture_logs

from ca.controller.snapshot import MARK_LABEL
from ca.platform.kubernetes.api.client import KubernetesAPI
from ca.platform.kubernetes.api.connection import connected
from ca.platform.kubernetes.api.resources import CLUSTER_TRUST_BUNDLES, Resource
from ca.platform.kubernetes.events.recorder import EventRecorder
from ca.platform.kubernetes.roots.cluster_trust_bundle import TrustBundlePublisher
from ca.platform.kubernetes.roots.plan import PublishedRoots
from istio_auth.system_clock import SystemClock
from tests.cluster.client import JSON, Client
from tests.cluster.control_plane import ControlPlane
from tests.cluster.waiting import eventually
from tests.fakes.authority import FakeAuthority
from tests.fakes.waiting import until

BUNDLES = "/apis/certificates.k8s.io/v1/clustertrustbundles"


class Bundle:
    """The ClusterTrustBundle of one test, with a publisher of it."""

    def __init__(self, api: KubernetesAPI, admin: Client, roots: PublishedRoots) -> None:
        self.api, self.admin, self.roots = api, admin, roots
        self.signer = f"example.org/s-{uuid4().hex[:8]}"
        self.name = f"{self.signer.replace('/', ':')}:roots"
        self.path = f"{BUNDLES}/{self.name}"
        self.is_leading = True
        self.asked = 0

    @asynccontextmanager
    async def publishing(
        self, *, resource: Resource = CLUSTER_TRUST_BUNDLES, interval: float = 0.02
    ) -> AsyncIterator[TrustBundlePublisher]:
        events = EventRecorder(self.api, instance="istio-ca-0", clock=SystemClock())
        publisher = TrustBundlePublisher(
            self.api,
            self.signer,
            roots=lambda: self.roots,
            mark="istio-ca",
            clock=SystemClock(),
            events=events,
            leading=self._leads,
            resource=resource,
            interval=timedelta(seconds=interval),
        )
        running = [asyncio.create_task(each.run()) for each in (events, publisher)]
        try:
            yield publisher
        finally:
            for task in running:
                task.cancel()
            await asyncio.wait(running)

    async def holds(self, pem: str) -> JSON:
        async def look() -> JSON | None:
            found = await self.admin.find(self.path)
            return found if found and found["spec"]["trustBundle"] == pem else None

        return await eventually(look)

    def writes(self) -> int:
        kind = str(CLUSTER_TRUST_BUNDLES)
        return sum(count for (verb, of), count in self.api.calls.items() if of == kind and verb != "get")

    def _leads(self) -> bool:
        self.asked += 1
        return self.is_leading


def publishes(publisher: TrustBundlePublisher, sequence: int) -> Callable[[], datetime | None]:
    return lambda: publisher.published(sequence)


@pytest.fixture
async def bundle(control_plane: ControlPlane, admin: Client, authority: FakeAuthority) -> AsyncIterator[Bundle]:
    pem = authority.bundle().to_pem().decode()
    async with connected(control_plane.kubeconfig) as api:
        bundle = Bundle(api, admin, PublishedRoots(1, pem))
        yield bundle
        await admin.request("DELETE", bundle.path)


async def test_a_bundle_is_made_and_follows_the_roots_and_is_not_written_without_need(
    bundle: Bundle, foreign_authority: FakeAuthority
) -> None:
    async with bundle.publishing() as publisher:
        await until(publishes(publisher, 1))
        made = await bundle.holds(bundle.roots.pem)
        assert made["spec"]["signerName"] == bundle.signer
        assert made["metadata"]["labels"] == {"istio.io/config": "true", MARK_LABEL: "istio-ca"}
        bundle.roots = PublishedRoots(2, bundle.roots.pem + foreign_authority.bundle().to_pem().decode())
        publisher.changed()
        await until(publishes(publisher, 2))
        await bundle.holds(bundle.roots.pem)
        looks = bundle.api.calls["get", str(CLUSTER_TRUST_BUNDLES)] + 10
        await until(lambda: bundle.api.calls["get", str(CLUSTER_TRUST_BUNDLES)] > looks)
    assert bundle.writes() == 2
    assert publisher.published(2) is None  # it does not run any more


async def test_what_was_changed_or_deleted_is_right_again_and_what_others_added_stays(
    bundle: Bundle, foreign_authority: FakeAuthority
) -> None:
    async with bundle.publishing() as publisher:
        await until(publishes(publisher, 1))
        change = {
            "metadata": {"labels": {"example.org/note": "kept"}},
            "spec": {"trustBundle": foreign_authority.bundle().to_pem().decode()},
        }
        await bundle.admin.patch(bundle.path, change)
        repaired = await bundle.holds(bundle.roots.pem)
        assert repaired["metadata"]["labels"]["example.org/note"] == "kept"
        await bundle.admin.delete(bundle.path)
        await bundle.holds(bundle.roots.pem)


async def test_what_somebody_changes_back_three_times_in_a_minute_is_left_alone(
    bundle: Bundle, foreign_authority: FakeAuthority
) -> None:
    theirs = foreign_authority.bundle().to_pem().decode()
    async with bundle.publishing() as publisher:
        for _ in range(3):
            await bundle.holds(bundle.roots.pem)
            await bundle.admin.patch(bundle.path, {"spec": {"trustBundle": theirs}})
        await until(lambda: publisher.fault)
        assert publisher.fault is not None
        assert "changing it back" in publisher.fault
        assert publisher.published(1) is None
        await bundle.holds(theirs)


async def test_the_bundle_of_another_ca_is_not_touched(bundle: Bundle, foreign_authority: FakeAuthority) -> None:
    theirs = foreign_authority.bundle().to_pem().decode()
    body = {
        "metadata": {"name": bundle.name, "labels": {MARK_LABEL: "another"}},
        "spec": {"signerName": bundle.signer, "trustBundle": theirs},
    }
    made = await bundle.admin.create(BUNDLES, body)
    async with bundle.publishing() as publisher:
        await until(lambda: publisher.fault)
        assert await bundle.admin.get(bundle.path) == made
        await bundle.admin.delete(bundle.path)
        await until(publishes(publisher, 1))
        assert publisher.fault is None
    assert bundle.writes() == 1


async def test_who_leads_no_more_writes_nothing(bundle: Bundle) -> None:
    bundle.is_leading = False
    async with bundle.publishing() as publisher:
        await until(lambda: bundle.asked > 1)
        assert bundle.writes() == 0
        bundle.is_leading = True
        await until(publishes(publisher, 1))


async def test_an_api_server_without_this_api_is_told_once_and_harms_nothing(bundle: Bundle) -> None:
    async with bundle.publishing(resource=replace(CLUSTER_TRUST_BUNDLES, version="v9")) as publisher:
        with capture_logs() as logs:
            looks = bundle.api.calls["get", str(CLUSTER_TRUST_BUNDLES)] + 10
            await until(lambda: bundle.api.calls["get", str(CLUSTER_TRUST_BUNDLES)] > looks)
        assert publisher.published(1) is None
    assert [line["reason"] for line in logs] == [
        "the API server does not serve clustertrustbundles.certificates.k8s.io in v9"
    ]


async def test_roots_that_the_api_server_refuses_are_told_and_mended_ones_are_published(bundle: Bundle) -> None:
    good, bundle.roots = bundle.roots, PublishedRoots(1, "no certificate\n")
    async with bundle.publishing() as publisher:
        await until(lambda: publisher.fault)
        assert publisher.fault is not None
        assert "trustBundle" in publisher.fault
        assert publisher.published(1) is None
        bundle.roots = good._replace(sequence=2)
        publisher.changed()
        await until(publishes(publisher, 2))
