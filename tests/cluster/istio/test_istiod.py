"""The agent before a real istiod: workloads are served from it, and what it refuses is told and can be mended."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import pytest

from istio_auth.bundle import BundleSet, TrustBundle
from istio_auth.sources.workload_api import WorkloadAPISource
from istio_auth.spiffe_id import TrustDomain
from istio_auth.svid import X509SVID
from istio_auth.system_clock import SystemClock
from istio_auth.verify import verify_chain
from tests.cluster.istio.agent import IstiodAgent
from tests.cluster.istio.istiod import NAMESPACE, Mesh
from tests.cluster.waiting import eventually
from tests.fakes.waiting import until

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.cluster]
REFUSED = "a workload's SVID was not renewed"
AWAY = "the CA gives no certificates; those held are served on"


async def workload(mesh: Mesh, name: str) -> str:
    """A new account with a pod on our node; its SPIFFE ID."""
    spiffe_id = await mesh.account(name)
    await mesh.pod(name)
    return spiffe_id


def proven(svid: X509SVID, roots: str) -> str:
    """Whose a certificate is, by istiod's roots alone."""
    bundle = TrustBundle.from_pem(TrustDomain("cluster.local"), roots.encode())
    return str(verify_chain(svid.chain, BundleSet((bundle,)), SystemClock().now()))


async def test_workloads_are_served_over_both_apis_and_renewed(mesh: Mesh, tmp_path: Path) -> None:
    web, db = await workload(mesh, "web"), await workload(mesh, "db")
    async with IstiodAgent(mesh, tmp_path, [web, db]) as agent:
        first, other = await agent.svid(web), await agent.svid(db)
        roots = await mesh.roots()
        assert [proven(each, roots) for each in (first, other)] == [web, db]
        assert first.key_pem() != other.key_pem()
        await agent.is_ready()
        with WorkloadAPISource(f"unix://{agent.socket}") as source:
            await source.ready(timedelta(seconds=40))
            held = source.x509_context()
            assert {str(each.id) for each in held.svids} == {web, db}
            assert [each.to_pem() for each in held.bundles] == [roots.encode()]
            before = held.svid.key_pem()
            await until(lambda: source.x509_context().svid.key_pem() != before)
        assert proven(await agent.svid(web), roots) == web
        assert agent.metric('svids_lapsed_total{kind="workload"}') == 0
        told = await agent.status()
        assert told["problems"] == {}
        assert {str(row["spiffe_id"]) for row in rows(told["workloads"])} == {web, db}
        assert (await mesh.agent_token())[:40] not in agent.process.text()


def rows(listed: object) -> Sequence[dict[str, object]]:
    assert isinstance(listed, list)
    return listed


async def test_an_istiod_that_dies_is_missed_by_nobody_and_found_again(mesh: Mesh, tmp_path: Path) -> None:
    web = await workload(mesh, "outage")
    async with IstiodAgent(mesh, tmp_path, [web]) as agent:
        held = await agent.svid()
        await mesh.istiod.kill()
        try:
            assert "was not reached" in str((await agent.process.says(AWAY))["reason"])
            assert (await agent.svid()).leaf.not_valid_after_utc >= held.leaf.not_valid_after_utc
        finally:
            mark = len(agent.process.lines())
            await mesh.istiod.start()
        await agent.process.says("a workload has a new SVID", after=mark)
        assert proven(await agent.svid(), await mesh.roots()) == web


async def test_a_workload_without_a_pod_on_the_node_is_refused_until_it_has_one(mesh: Mesh, tmp_path: Path) -> None:
    web, far = await workload(mesh, "near"), await mesh.account("far")
    await mesh.admin.create_node(f"{mesh.node}-other")
    await mesh.pod("far", f"{mesh.node}-other")
    async with IstiodAgent(mesh, tmp_path, [web, far]) as agent:
        reason = str((await refused(agent, far))["reason"])
        assert "request impersonation authentication failure" in reason
        assert "its own log says why" in reason
        assert str((await agent.svid(web)).id) == web
        found = [row for row in rows((await agent.status())["workloads"]) if row["spiffe_id"] == far]
        assert [row["trouble"] for row in found] == [reason]
        await agent.is_ready()
        await until(lambda: f'no instances of "{mesh.namespace}/far" found on node "{mesh.node}"' in istiods_log(mesh))
        await mesh.pod("far")
        assert str((await agent.svid(far)).id) == far


async def refused(agent: IstiodAgent, spiffe_id: str) -> dict[str, object]:
    """The line that says that this one is refused; another may be as well, of whose pod istiod has not heard yet."""

    def found() -> list[dict[str, object]]:
        return [
            line for line in agent.process.lines() if (line["event"], line.get("spiffe_id")) == (REFUSED, spiffe_id)
        ]

    await until(found)
    return found()[0]


async def test_an_account_that_istiod_does_not_trust_with_others_is_refused(mesh: Mesh, tmp_path: Path) -> None:
    web = await workload(mesh, "asked")
    await mesh.account("stranger")
    agent = IstiodAgent(mesh, tmp_path, [web])
    agent.show(await mesh.pod_token(await mesh.pod("stranger")))
    async with agent:
        reason = str((await agent.process.says(REFUSED))["reason"])
        assert "CA_TRUSTED_NODE_ACCOUNTS" in reason
        await until(lambda: "is not allowed to impersonate" in istiods_log(mesh))
        agent.show(await mesh.agent_token())
        assert str((await agent.svid()).id) == web


async def test_a_token_that_istiod_does_not_take_is_told_as_such(mesh: Mesh, tmp_path: Path) -> None:
    web = await workload(mesh, "audience")
    agent = IstiodAgent(mesh, tmp_path, [web])
    agent.show(await mesh.agent_token("somebody-else"))
    async with agent:
        line = await agent.process.says("the CA gives no certificates; those held are served on")
        assert "UNAUTHENTICATED: request authenticate failure" in str(line["reason"])
        assert "does not take our service-account token" in agent.not_ready()
        told = await agent.status()
        assert "does not take our service-account token" in str(told["ca"])
        agent.show(await mesh.agent_token())
        assert str((await agent.svid()).id) == web
        await agent.is_ready()


async def test_an_istiod_of_another_name_is_refused(mesh: Mesh, tmp_path: Path) -> None:
    web = await workload(mesh, "named")
    agent = IstiodAgent(mesh, tmp_path, [web], server_name="istiod.other.svc")
    async with agent:
        reason = str((await agent.process.says(AWAY))["reason"])
        assert "the peer's certificate is refused: Hostname mismatch" in reason
        assert "'istiod.other.svc'" in reason
        await agent.process.kill()
        agent.configure()
        await agent.process.start()
        assert str((await agent.svid()).id) == web


async def test_the_cluster_is_named_to_istiod(mesh: Mesh, tmp_path: Path) -> None:
    web = await workload(mesh, "cluster")
    agent = IstiodAgent(mesh, tmp_path, [web], cluster_id="elsewhere")
    async with agent:
        reason = str((await agent.process.says(AWAY))["reason"])
        assert "request authenticate failure" in reason
        await agent.process.kill()
        agent.configure()
        await agent.process.start()
        assert str((await agent.svid()).id) == web


async def test_new_roots_count_when_they_are_pinned_and_not_before(mesh: Mesh, tmp_path: Path) -> None:
    web, old = await workload(mesh, "roots"), await mesh.roots()
    async with IstiodAgent(mesh, tmp_path, [web]) as agent:
        await agent.svid()
        await mesh.istiod.kill()
        await mesh.admin.delete(f"/api/v1/namespaces/{NAMESPACE}/secrets/istio-ca-secret")
        await mesh.istiod.start()

        async def published() -> str | None:
            return roots if (roots := await mesh.roots()) != old else None

        new = await eventually(published)
        await until(
            lambda: (
                "self-signed certificate in certificate chain" in agent.process.text()
                or "unable to get" in agent.process.text()
            )
        )
        mark = len(agent.process.lines())
        agent.pin(new)
        await agent.process.says("a workload has a new SVID", after=mark)
        assert proven(await agent.svid(), new) == web


def istiods_log(mesh: Mesh) -> str:
    return (mesh.plane.folder / "istiod.log").read_text()
