"""An API server that is slow, busy, forgetful or contradicts: one secret waits, and no other with it."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import pytest
import pytest_asyncio

from tests.cluster.client import Client
from tests.cluster.control_plane import ControlPlane
from tests.cluster.running_ca import ENV_LABEL, RunningCA
from tests.cluster.sound import until_sound, versions
from tests.cluster.waiting import appears
from tests.fakes.api_server_proxy import Answer, APIServerProxy, Call, Fault
from tests.fakes.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass
class Site:
    """A namespace, and a CA that reaches the API server by a proxy."""

    admin: Client
    namespace: str
    proxy: APIServerProxy
    ca: RunningCA

    @property
    def path(self) -> str:
        return f"/api/v1/namespaces/{self.namespace}"

    async def account(self, name: str) -> None:
        """A new service account."""
        await self.admin.create_service_account(self.namespace, name)

    async def sound(self, *, within: float = 90) -> dict[str, str]:
        """The versions of all secrets, once everything is as it should be."""
        return versions(await until_sound(self.admin, self.namespace, self.ca.namespace, within=within))

    def calls(self, method: str, name: str) -> list[Call]:
        """What was asked of a secret."""
        return list(filter(self.secret(method, name), self.proxy.calls))

    def secret(self, method: str, name: str) -> Callable[[Call], bool]:
        """Whether a call asks this of a secret here."""
        wanted = (method, self.namespace, "secrets", name)
        return lambda call: (call.method, call.namespace, call.resource, call.name) == wanted


def is_watch(resource: str) -> Callable[[Call], bool]:
    return lambda call: call.watches and call.resource == resource


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(
    control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[Client, APIServerProxy, RunningCA]]:
    """A CA for all tests here, and the proxy that is between it and the API server."""
    folder, namespace = tmp_path_factory.mktemp("misbehaving"), f"ca-{uuid.uuid4().hex[:8]}"
    async with control_plane.admin() as admin, APIServerProxy(control_plane.url, control_plane.admin_tls) as proxy:
        await admin.create_namespace(namespace)
        kubeconfig = proxy.kubeconfig(folder / "kubeconfig")
        # What is late is done all the same: no lease is lost for it here.
        async with RunningCA(kubeconfig, folder / "ca", namespace, settings={"lease": "30s"}) as ca:
            yield admin, proxy, ca
        await admin.delete(f"/api/v1/namespaces/{namespace}")


@pytest_asyncio.fixture(loop_scope="module")
async def site(running: tuple[Client, APIServerProxy, RunningCA]) -> AsyncIterator[Site]:
    admin, proxy, ca = running
    namespace = f"site-{uuid.uuid4().hex[:8]}"
    await admin.create_namespace(namespace, labels={ENV_LABEL: ca.namespace})
    site = Site(admin, namespace, proxy, ca)
    await site.account("web")
    await site.sound()
    yield site
    proxy.behave()  # what is left of a test's faults is not the next one's
    await admin.delete(f"/api/v1/namespaces/{namespace}")


async def test_watches_that_are_cut_go_on_where_they_stopped(site: Site) -> None:
    site.proxy.shut = True
    site.proxy.cut()
    already = len(site.proxy.calls)
    await site.account("later")
    await site.admin.delete(f"{site.path}/serviceaccounts/web")
    site.proxy.shut = False
    assert "istio.web" not in await site.sound()
    watched = [call for call in site.proxy.calls[already:] if is_watch("serviceaccounts")(call)]
    assert watched
    listed = [call for call in site.proxy.calls[already:] if call.resource == "serviceaccounts" and not call.watches]
    assert [call.path for call in listed if not call.name] == []


async def test_a_watch_whose_version_has_expired_begins_with_a_list(site: Site) -> None:
    expired = site.proxy.answer(is_watch("serviceaccounts"), Answer(410, "too old resource version"))
    already = len(site.proxy.calls)
    site.proxy.cut()
    await until(lambda: expired.met)
    await site.account("later")
    await site.sound()
    listed = [call for call in site.proxy.calls[already:] if call.resource == "serviceaccounts" and not call.watches]
    assert len([call for call in listed if "continue=" not in call.path]) == 1  # other tests may leave pages of them


async def test_a_change_by_somebody_else_in_between_is_kept(site: Site) -> None:
    secret = f"{site.path}/secrets/istio.web"

    async def rival(_: Call) -> None:
        await site.admin.patch(secret, {"metadata": {"annotations": {"example.org/note": "kept"}}})

    conflict = site.proxy.interfere(Fault(site.secret("PATCH", "istio.web"), before=rival))
    await site.admin.patch(secret, {"data": {"root-cert.pem": "ZGFtYWdlZA=="}})
    await until(lambda: conflict.met)
    await site.sound()
    assert (conflict.met[0], 409) in site.proxy.answered
    assert (await site.admin.get(secret))["metadata"]["annotations"]["example.org/note"] == "kept"


async def test_a_secret_that_somebody_else_made_first_is_not_written_over(site: Site) -> None:
    body = {"metadata": {"name": "istio.late"}, "type": "Opaque", "stringData": {"theirs": "yes"}}

    async def rival(_: Call) -> None:
        await site.admin.create(f"{site.path}/secrets", body)

    conflict = site.proxy.interfere(Fault(site.secret("POST", "istio.late"), before=rival))
    await site.account("late")
    await until(lambda: conflict.met and (conflict.met[0], 409) in site.proxy.answered)
    await site.account("other")
    await appears(site.admin, f"{site.path}/secrets/istio.other")
    kept = await site.admin.get(f"{site.path}/secrets/istio.late")
    assert (kept["type"], list(kept["data"])) == ("Opaque", ["theirs"])
    await site.admin.delete(f"{site.path}/secrets/istio.late")
    await site.admin.delete(f"{site.path}/serviceaccounts/late")


@pytest.mark.parametrize("what", ["a secret", "a watch", "a list"])
async def test_a_busy_api_server_is_not_asked_again_before_it_wants_to_be(site: Site, what: str) -> None:
    where: Callable[[Call], bool] = {
        "a secret": site.secret("POST", "istio.late"),
        "a watch": is_watch("serviceaccounts"),
        "a list": lambda call: call.resource == "serviceaccounts" and not call.watches and not call.name,
    }[what]
    busy = site.proxy.answer(where, Answer(429, "too many requests", {"Retry-After": "3"}), times=2)
    if what == "a list":
        site.proxy.answer(is_watch("serviceaccounts"), Answer(410))
    if what != "a secret":
        site.proxy.cut()
        await until(lambda: busy.met)
    await asyncio.gather(site.account("late"), site.account("other"))
    await site.sound()
    first, second = (call.at for call in busy.met)
    if what == "a secret":  # nobody else waits with it
        assert site.calls("POST", "istio.other")[0].at < second
    third = next(call.at for call in site.proxy.calls if where(call) and call.at > second)
    assert second - first >= 3
    assert third - second >= 3


async def test_a_request_that_hangs_holds_nobody_up_and_leaves_one_secret(site: Site) -> None:
    hanging, go_on = site.proxy.hold(site.secret("POST", "istio.slow"))
    await site.account("slow")
    await until(lambda: hanging.met)
    # Soon, for the CA asks again after 15 seconds.
    await asyncio.gather(*(site.account(f"other-{number}") for number in range(12)))
    await asyncio.gather(*(appears(site.admin, f"{site.path}/secrets/istio.other-{number}") for number in range(12)))
    assert await site.admin.find(f"{site.path}/secrets/istio.slow") is None
    go_on.set()
    await site.sound()
    assert len(site.calls("POST", "istio.slow")) == 1


async def test_a_slow_api_server_costs_time_and_nothing_else(site: Site) -> None:
    async def slowly(_: Call) -> None:
        await asyncio.sleep(0.3)

    site.proxy.interfere(Fault(lambda call: not call.watches, before=slowly, left=1000))
    await asyncio.gather(*(site.account(f"slow-{number}") for number in range(16)))
    found = await site.sound()
    assert len(found) >= 17
    for number in range(16):
        assert len(site.calls("POST", f"istio.slow-{number}")) == 1
    await site.ca.leads()


async def test_an_answer_that_is_lost_is_no_reason_to_write_again(site: Site) -> None:
    lost = site.proxy.lose(site.secret("POST", "istio.late"))
    await site.account("late")
    await until(lambda: lost.met)
    made = await appears(site.admin, f"{site.path}/secrets/istio.late")
    await site.account("other")
    found = await site.sound()
    await until(lambda: site.ca.metric("istio_auth_ca_secrets_failing") == 0)
    assert found["istio.late"] == made["metadata"]["resourceVersion"]
    assert len(site.calls("POST", "istio.late")) == 1
