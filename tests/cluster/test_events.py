"""Events as the API server keeps them, and a caller that never notices when it does not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from ca.platform.kubernetes.api.client import KubernetesAPI
from ca.platform.kubernetes.api.connection import connected
from ca.platform.kubernetes.api.resources import CLUSTER_TRUST_BUNDLES, SERVICE_ACCOUNTS
from ca.platform.kubernetes.events.recorder import CONTROLLER, EventRecorder
from ca.platform.kubernetes.events.series import EventType, Regarding
from tests.cluster.client import JSON, Client
from tests.cluster.control_plane import ControlPlane
from tests.fakes.clock import FakeClock


@pytest.fixture
async def api(control_plane: ControlPlane) -> AsyncIterator[KubernetesAPI]:
    async with connected(control_plane.kubeconfig) as api:
        yield api


@contextmanager
def recording(recorder: EventRecorder) -> Iterator[None]:
    task = asyncio.create_task(recorder.run())
    try:
        yield
    finally:
        task.cancel()


async def account(admin: Client, namespace: str) -> Regarding:
    made = await admin.create_service_account(namespace, "web")
    return Regarding(SERVICE_ACCOUNTS, "web", namespace, made["metadata"]["uid"])


async def events(admin: Client, namespace: str) -> Sequence[JSON]:
    return await admin.list(f"/apis/events.k8s.io/v1/namespaces/{namespace}/events")


async def test_an_event_is_found_on_its_object_with_all_that_was_said(
    api: KubernetesAPI, admin: Client, namespace: str, clock: FakeClock
) -> None:
    regarding = await account(admin, namespace)
    recorder = EventRecorder(api, instance="istio-ca-0", clock=clock)
    with recording(recorder):
        recorder.record(regarding, "IssuanceFailed", "the issuer ends first", action="Issue")
        await recorder.written()
    fields = f"involvedObject.kind=ServiceAccount,involvedObject.uid={regarding.uid}"  # as `kubectl describe` asks
    (found,) = await admin.list(f"/api/v1/namespaces/{namespace}/events", fieldSelector=fields)
    assert (found["reason"], found["message"], found["type"]) == ("IssuanceFailed", "the issuer ends first", "Warning")
    assert (found["reportingComponent"], found["reportingInstance"]) == (CONTROLLER, "istio-ca-0")


async def test_what_happens_often_is_one_event_with_a_count(
    api: KubernetesAPI, admin: Client, namespace: str, clock: FakeClock
) -> None:
    regarding = await account(admin, namespace)
    recorder = EventRecorder(api, instance="istio-ca-0", clock=clock)
    calls = api.calls.total()
    with recording(recorder):
        for _ in range(100):
            recorder.record(regarding, "IssuanceFailed", "no", action="Issue", event_type=EventType.NORMAL)
            await recorder.written()
        clock.advance(timedelta(seconds=5))
        recorder.record(regarding, "IssuanceFailed", "no", action="Issue", event_type=EventType.NORMAL)
        await recorder.written()
    (found,) = await events(admin, namespace)
    assert found["series"]["count"] == 101
    assert found["type"] == "Normal"
    assert api.calls.total() - calls == 2


async def test_an_event_that_the_api_server_has_forgotten_is_told_anew(
    api: KubernetesAPI, admin: Client, namespace: str, clock: FakeClock
) -> None:
    regarding = await account(admin, namespace)
    recorder = EventRecorder(api, instance="istio-ca-0", clock=clock)
    with recording(recorder):
        recorder.record(regarding, "IssuanceFailed", "no", action="Issue")
        await recorder.written()
        (former,) = await events(admin, namespace)
        await admin.delete(f"/apis/events.k8s.io/v1/namespaces/{namespace}/events/{former['metadata']['name']}")
        clock.advance(timedelta(seconds=5))
        recorder.record(regarding, "IssuanceFailed", "no", action="Issue")
        await recorder.written()
    (found,) = await events(admin, namespace)
    assert found["metadata"]["uid"] != former["metadata"]["uid"]
    assert found["series"]["count"] == 2


@pytest.mark.parametrize("letter", ["x", "ü", "€", "🔑", "\ud800"])
async def test_words_of_any_length_and_alphabet_are_cut_to_what_is_allowed(
    api: KubernetesAPI, admin: Client, namespace: str, clock: FakeClock, letter: str
) -> None:
    regarding = await account(admin, namespace)
    recorder = EventRecorder(api, instance=400 * letter, clock=clock)
    with recording(recorder):
        recorder.record(regarding, 400 * letter, 2000 * letter, action=400 * letter)
        await recorder.written()
    (found,) = await events(admin, namespace)
    assert found["note"].endswith("...")
    assert 1020 <= len(found["note"].encode()) <= 1024


async def test_events_about_objects_without_a_namespace_and_with_names_of_any_length(
    api: KubernetesAPI, admin: Client, namespace: str, clock: FakeClock
) -> None:
    regarding = Regarding(CLUSTER_TRUST_BUNDLES, f"istio-auth.io:workload:{namespace}.{'x' * 250}", uid=namespace)
    recorder = EventRecorder(api, instance="istio-ca-0", clock=clock)
    with recording(recorder):
        recorder.record(regarding, "Contended", "somebody changes it back", action="Publish")
        await recorder.written()
    found = [event for event in await events(admin, "default") if event["regarding"].get("uid") == namespace]
    assert [event["note"] for event in found] == ["somebody changes it back"]


async def test_what_can_not_be_written_is_a_line_in_the_log_and_what_comes_after_is_written(
    api: KubernetesAPI, admin: Client, namespace: str, clock: FakeClock
) -> None:
    regarding = await account(admin, namespace)
    recorder = EventRecorder(api, instance="istio-ca-0", clock=clock)
    with recording(recorder), capture_logs() as logs:
        recorder.record(Regarding(SERVICE_ACCOUNTS, "web", "no-such-namespace"), "Lost", "no", action="Issue")
        recorder.record(regarding, "IssuanceFailed", "no", action="Issue")
        await recorder.written()
    assert [line["event"] for line in logs if line["log_level"] == "warning"] == ["an event was not written"]
    assert len(await events(admin, namespace)) == 1


async def test_what_does_not_fit_into_the_queue_is_left_out_without_waiting(
    api: KubernetesAPI, admin: Client, namespace: str, clock: FakeClock
) -> None:
    regarding = await account(admin, namespace)
    recorder = EventRecorder(api, instance="istio-ca-0", clock=clock, capacity=3)
    with capture_logs() as logs:
        for number in range(10):  # nobody writes yet
            recorder.record(regarding, f"Reason{number}", "no", action="Issue")
    with recording(recorder):
        await recorder.written()
        recorder.record(regarding, "Afterwards", "no", action="Issue")
        await recorder.written()
    assert [line["event"] for line in logs] == ["events are left out"]
    reasons = {event["reason"] for event in await events(admin, namespace)}
    assert reasons == {"Reason0", "Reason1", "Reason2", "Afterwards"}


async def test_an_account_that_may_not_write_events_is_told_once_and_nothing_fails(
    control_plane: ControlPlane, admin: Client, namespace: str, clock: FakeClock, tmp_path: Path
) -> None:
    regarding = await account(admin, namespace)
    token = await admin.service_account_token(namespace, "web")
    async with connected(control_plane.kubeconfig_for(token, tmp_path / "kubeconfig")) as api:
        recorder = EventRecorder(api, instance="istio-ca-0", clock=clock)
        with recording(recorder), capture_logs() as logs:
            for number in range(3):
                recorder.record(regarding, f"Reason{number}", "no", action="Issue")
            await recorder.written()
    warnings = [line for line in logs if line["log_level"] == "warning"]
    assert len(warnings) == 1
    assert "forbidden" in warnings[0]["reason"]
