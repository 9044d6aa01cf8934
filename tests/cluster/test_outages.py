"""The API server and its store go away, hang and come back under a running CA."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from tests.cluster.client import Client
from tests.cluster.control_plane import ControlPlane
from tests.cluster.running_ca import NOT_PROVEN, Caller, RunningCA, account_id
from tests.cluster.sound import root_of, until_sound, versions
from tests.cluster.waiting import appears, eventually
from tests.fakes.api_server_proxy import APIServerProxy
from tests.fakes.waiting import until

LEASE = {"lease": "2s"}  # a leader has to notice before long that it leads no more


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    """A control plane that tests may stop, as long as they start it again."""
    with ControlPlane() as plane:
        yield plane


@dataclass
class Site:
    """A namespace on that control plane."""

    plane: ControlPlane
    admin: Client
    namespace: str
    folder: Path


@pytest.fixture
async def site(plane: ControlPlane, tmp_path: Path) -> AsyncIterator[Site]:
    plane.require_alive()
    namespace = f"outage-{uuid.uuid4().hex[:8]}"
    async with plane.admin() as admin:
        await admin.create_namespace(namespace)
        await admin.create_service_account(namespace, "web")
        yield Site(plane, admin, namespace, tmp_path)


async def begin_pause(plane: ControlPlane) -> None:
    plane.pause_api_server()


async def end_pause(plane: ControlPlane) -> None:
    plane.resume_api_server()


@pytest.mark.parametrize(
    ("begin", "end"),
    [
        (ControlPlane.stop_api_server, ControlPlane.start_api_server),
        (ControlPlane.stop_etcd, ControlPlane.start_etcd),
        (begin_pause, end_pause),
    ],
    ids=["the API server stops", "etcd stops", "the API server hangs"],
)
async def test_the_work_goes_on_where_it_stopped(
    site: Site, begin: Callable[[ControlPlane], Awaitable[None]], end: Callable[[ControlPlane], Awaitable[None]]
) -> None:
    ca = RunningCA(site.plane.kubeconfig, site.folder / "ca", site.namespace, managed=[site.namespace], settings=LEASE)
    async with ca:
        if site.plane.has_controllers:
            await appears(site.admin, f"/api/v1/namespaces/{site.namespace}/serviceaccounts/default")  # and no later
        before = versions(await until_sound(site.admin, site.namespace, site.namespace))
        root = await root_of(site.admin, site.namespace)
        already = ca.mark()
        await begin(site.plane)
        try:
            await ca.process.says("no longer leading", after=already)
            await until(lambda: ca.metric("istio_auth_ca_leader") == 0)
        finally:
            await end(site.plane)
        await site.admin.create_service_account(site.namespace, "later")
        after = versions(await until_sound(site.admin, site.namespace, site.namespace))
        assert after.keys() - before.keys() == {"istio.later"}
        assert before.items() <= after.items(), "what was as it should be was written again"
        assert await root_of(site.admin, site.namespace) == root
        assert await ca.process.end() == 0


async def test_what_happened_while_nothing_was_heard_is_made_good_when_the_watches_have_expired(site: Site) -> None:
    async with APIServerProxy(site.plane.url, site.plane.admin_tls) as proxy:
        kubeconfig = proxy.kubeconfig(site.folder / "kubeconfig")
        async with RunningCA(
            kubeconfig, site.folder / "ca", site.namespace, managed=[site.namespace], settings=LEASE
        ) as ca:
            await until_sound(site.admin, site.namespace, site.namespace)
            await ca.leads()
            proxy.shut = True
            proxy.cut()
            await site.plane.stop_api_server()
            await site.plane.start_api_server()  # with no memory of what came before
            await site.admin.create_service_account(site.namespace, "later")
            await site.admin.delete(f"/api/v1/namespaces/{site.namespace}/serviceaccounts/web")
            assert proxy.expired == 0
            proxy.shut = False
            found = await until_sound(site.admin, site.namespace, site.namespace)
            assert "istio.later" in found
            assert "istio.web" not in found
            assert proxy.expired > 0, "no watch was answered with 410"


async def test_a_pod_that_was_known_gets_certificates_while_the_api_server_is_away_but_not_for_ever(
    site: Site,
) -> None:
    tokens = {"verification": "offline", "stale_after": "20s"}
    async with RunningCA(
        site.plane.kubeconfig, site.folder / "ca", site.namespace, managed=[site.namespace], tokens=tokens
    ) as ca:
        caller = await Caller.of(ca, site.admin, site.namespace)
        token = await known(site, ca, caller)
        reviewed = ca.metric("istio_auth_ca_tokens_reviewed")
        stopped = time.monotonic()
        await site.plane.stop_api_server()
        try:
            for _ in range(3):
                assert (await caller.identity(token))[0] == account_id(site.namespace, "web")
            assert ca.metric("istio_auth_ca_tokens_reviewed") == reviewed

            async def refused() -> tuple[tuple[grpc.StatusCode, str], str] | None:
                try:
                    return await caller.refusal(token)
                except AssertionError:
                    return None

            (code, _), reason = await eventually(refused)
            assert time.monotonic() - stopped > 5
            assert code is grpc.StatusCode.UNAVAILABLE  # come again: it is no fault of the caller's
            assert "can not be reached" in reason
        finally:
            await site.plane.start_api_server()

        async def gets() -> bool:
            try:
                return bool((await caller.identity(token))[0])
            except grpc.aio.AioRpcError:
                return False

        assert await eventually(gets)


async def known(site: Site, ca: RunningCA, caller: Caller) -> str:
    """The token of a new pod, as soon as the CA can verify it without asking."""
    token = ""

    async def alone() -> bool:
        nonlocal token
        # A new one each time: so old is all that is watched, at most, when this returns.
        name = f"web-{uuid.uuid4().hex[:8]}"
        await site.admin.patch(
            f"/api/v1/namespaces/{site.namespace}/serviceaccounts/web", {"metadata": {"labels": {"last": name}}}
        )
        pod = await site.admin.create_pod(site.namespace, name, service_account="web")
        token = await site.admin.service_account_token(site.namespace, "web", audiences=["istio-ca"], pod=pod)
        before = ca.metric("istio_auth_ca_tokens_verified_offline")
        await caller.identity(token)
        return ca.metric("istio_auth_ca_tokens_verified_offline") > before

    await eventually(alone)
    return token


async def test_the_token_of_a_user_is_refused(tmp_path: Path) -> None:
    users = tmp_path / "users.csv"
    tokens = {"jane": "jane.s.token", "account": "account.s.token"}
    users.write_text(
        f'{tokens["jane"]},jane,1,"staff"\n'
        f'{tokens["account"]},system:serviceaccount:default:web,2,"system:serviceaccounts"\n'
    )
    flags = (f"--token-auth-file={users}", "--api-audiences=https://kubernetes.default.svc,istio-ca")
    with ControlPlane(api_server_flags=flags) as plane:
        async with plane.admin() as admin:
            await admin.create_namespace("ca")
            async with RunningCA(plane.kubeconfig, tmp_path / "ca", "ca", managed=["default"]) as ca:
                caller = await Caller.of(ca, admin, "default")
                heard, reason = await caller.refusal(tokens["jane"])
                assert heard == NOT_PROVEN
                assert "the user 'jane' of the token is not of the group system:serviceaccounts" in reason
                assert (await caller.identity(tokens["account"]))[0] == account_id("default", "web")
                await until(lambda: ca.metric("istio_auth_ca_tokens_reviewed") == 2)
