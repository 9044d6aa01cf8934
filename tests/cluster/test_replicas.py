"""Replicas of one CA, started together, killed at any write, and paused: one root, one leader, one secret each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509

from tests.cluster.client import Client
from tests.cluster.control_plane import ControlPlane
from tests.cluster.running_ca import ROOTS, Caller, RunningCA, account_id
from tests.cluster.sound import root_of, until_sound, versions
from tests.cluster.waiting import appears
from tests.fakes.api_server_proxy import APIServerProxy, Call, Cut, Fault
from tests.fakes.waiting import until
from tests.integration.daemons.foreign import certificates

LEADER = "istio_auth_ca_leader"


@dataclass
class Site:
    """A namespace of the shared control plane, and a CA's replicas in it."""

    plane: ControlPlane
    admin: Client
    namespace: str
    folder: Path

    @property
    def path(self) -> str:
        return f"/api/v1/namespaces/{self.namespace}"

    def replica(self, name: str, *, lease: str, kubeconfig: Path | None = None) -> RunningCA:
        """A replica, not started yet."""
        return RunningCA(
            kubeconfig or self.plane.kubeconfig,
            self.folder / name,
            self.namespace,
            managed=[self.namespace],
            settings={"lease": lease},
        )

    async def account(self, name: str) -> None:
        """A new service account."""
        await self.admin.create_service_account(self.namespace, name)

    async def sound(self) -> dict[str, str]:
        """The versions of all secrets, once everything is as it should be."""
        return versions(await until_sound(self.admin, self.namespace, self.namespace))


@pytest.fixture
async def site(control_plane: ControlPlane, admin: Client, namespace: str, tmp_path: Path) -> Site:
    return Site(control_plane, admin, namespace, tmp_path)


async def test_three_that_start_together_end_with_one_root_and_one_leader_and_all_sign(site: Site) -> None:
    replicas = [site.replica(f"ca-{number}", lease="6s") for number in range(3)]
    await site.account("web")
    async with AsyncExitStack() as stack:
        await asyncio.gather(*(stack.enter_async_context(replica) for replica in replicas))
        await site.sound()
        root = await root_of(site.admin, site.namespace)
        pod = await site.admin.create_pod(site.namespace, "web-1", service_account="web")
        token = await site.admin.service_account_token(site.namespace, "web", audiences=["istio-ca"], pod=pod)
        for replica in replicas:
            caller = await Caller.of(replica, site.admin, site.namespace)
            given, identity = await caller.identity(token)
            assert given == account_id(site.namespace, "web")
            certificates(identity.chain.decode())[0].verify_directly_issued_by(root)
        await until(lambda: sum(replica.metric(LEADER) for replica in replicas) == 1)
        terms = [line["term"] for replica in replicas for line in replica.told("leading")]
        assert sorted(terms) == list(range(len(terms))), "two led at once"
        made = [
            line for each in replicas for line in each.process.lines() if "a new root was made" in str(line["event"])
        ]
        assert len(made) == 1


async def test_a_paused_leader_that_wakes_up_late_writes_nothing_and_leads_no_more(site: Site) -> None:
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(APIServerProxy(site.plane.url, site.plane.admin_tls))
        first = site.replica("first", lease="10s", kubeconfig=proxy.kubeconfig(site.folder / "kubeconfig"))
        await site.account("web")
        await stack.enter_async_context(first)
        await site.sound()
        # A write is on its way when it stops, and arrives when another one leads.
        held, go_on = proxy.hold(is_write("secrets", "istio.late"))
        await site.account("late")
        await until(lambda: held.met)
        first.pause()
        asleep = first.mark()
        second = await stack.enter_async_context(site.replica("second", lease="10s"))
        await second.leads()
        before = await site.sound()
        already = len(proxy.calls)
        go_on.set()
        await until(lambda: (held.met[0], 409) in proxy.answered)
        await site.admin.patch(f"{site.path}/secrets/istio.web", {"data": {"key.pem": None}})
        await site.sound()
        first.resume()
        await first.process.says("no longer leading", after=asleep)
        await site.admin.patch(f"{site.path}/configmaps/{ROOTS}", {"data": {"root-cert.pem": "damaged"}})
        await site.account("last")
        after = await site.sound()
        assert after["istio.late"] == before["istio.late"]
        leases = [call for call in proxy.calls[already:] if call.resource == "leases"]
        await until(
            lambda: len([call for call in proxy.calls[already:] if call.resource == "leases"]) > len(leases) + 2
        )
        written = [call for call in proxy.calls[already:] if call.writes and call.resource not in ("leases", "events")]
        assert written == []
        assert (first.metric(LEADER), second.metric(LEADER)) == (0, 1)
        assert first.told("leading", after=asleep) == []


def is_write(resource: str, name: str = "") -> Callable[[Call], bool]:
    return lambda call: call.writes and call.resource == resource and name in ("", call.name)


@pytest.mark.timeout(900)  # a dozen lives, each with a start and a lease to wait for
async def test_killed_at_any_write_before_or_after_it_arrived_the_next_one_finishes_the_work(site: Site) -> None:
    roots: list[x509.Certificate] = []
    async with APIServerProxy(site.plane.url, site.plane.admin_tls) as proxy:
        ca = site.replica("ca", lease="1s", kubeconfig=proxy.kubeconfig(site.folder / "kubeconfig"))

        async def killed_before(_: Call) -> None:
            await ca.process.kill()
            raise Cut

        async def killed_after(_: Call) -> None:
            await ca.process.kill()

        async def run_until_killed(where: Callable[[Call], bool]) -> None:
            for fault in (Fault(where, before=killed_before), Fault(where, after=killed_after)):
                proxy.interfere(fault)
                await ca.process.start()
                await until(lambda fault=fault: fault.met, within=120)  # type: ignore[misc]  # called in this round
                await until(lambda: not ca.process.runs)
                if await site.admin.find(f"{site.path}/secrets/istio-ca-secret"):
                    roots.append(await root_of(site.admin, site.namespace))

        await run_until_killed(is_write("secrets", "istio-ca-secret"))
        await run_until_killed(is_write("leases"))
        await run_until_killed(is_write("configmaps"))
        await site.account("web")
        await run_until_killed(is_write("secrets", "istio.web"))
        await site.admin.patch(f"{site.path}/secrets/istio.web", {"data": {"key.pem": None}})
        await run_until_killed(is_write("secrets", "istio.web"))
        assert len(roots) == 9  # every time but the first, when the root did not arrive
        await ca.start()
        await site.sound()
        assert {*roots, await root_of(site.admin, site.namespace)} == {roots[0]}
        published = await appears(site.admin, f"{site.path}/configmaps/{ROOTS}")
        assert x509.load_pem_x509_certificates(published["data"]["root-cert.pem"].encode()) == [roots[0]]
        await ca.process.end()
