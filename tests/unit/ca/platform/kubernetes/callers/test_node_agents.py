"""The agents of nodes: welcome as long as their pod is there, and told of what is on their node alone."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ca.agents.folder import AgentFolder
from ca.attest import Attested
from ca.platform.kubernetes.callers.impersonation import NodeAccounts, ServiceAccountRegistry
from ca.platform.kubernetes.callers.node_agents import NodeAgents, PodRegistrations
from ca.platform.kubernetes.callers.pods import PodIndex
from ca.platform.kubernetes.callers.registry import KubernetesRegistry
from ca.platform.kubernetes.facts import PodFact
from ca.registrations.entitlement import EntitledIdentities
from ca.registrations.file import RegistrationFile
from ca.registrations.rules import RegistrationRules
from ca.registrations.table import RegistrationDelta
from ca.registry import Grant
from istio_auth.errors import NotAuthorized, NotReady
from istio_auth.spiffe_id import SpiffeID, TrustDomain

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)
DOMAIN = TrustDomain("cluster.local")
AGENT_POD = PodFact("agent-1", "istio-system", "agent-x", "node-agent", "node-1", "Running")
WEB = PodFact("web-1", "shop", "web-0", "web", "node-1", "Running")
HOUR = timedelta(hours=1)
OF_FILE = """[[registration]]
spiffe_id = "spiffe://cluster.local/ns/shop/sa/web"
agents = ["node-1", "vm-1"]
selectors = ["unix:uid:1000"]
ttl = "1h"
dns_names = ["web.example.com"]
"""


def account(name: str, namespace: str = "shop") -> SpiffeID:
    return SpiffeID.for_service_account(DOMAIN, namespace, name)


def agent(name: str = "node-1") -> SpiffeID:
    return SpiffeID.for_agent(DOMAIN, name)


class Cluster:
    """What a CA knows of pods, of agents that joined, and of registrations in its file."""

    def __init__(
        self, folder: Path, *, file: str = "", accounts: tuple[str, ...] = ("istio-system/node-agent",)
    ) -> None:
        self.live = True
        self.pods = PodIndex(lambda: self.live)
        self.joined = AgentFolder(folder / "agents")
        self.path = folder / "registrations.toml"
        self.path.write_text(file)
        self.file = RegistrationFile(self.path, RegistrationRules(DOMAIN, timedelta(days=90), lambda _: None))
        trusted = NodeAccounts.parse(accounts)
        self.agents = NodeAgents(self.joined, trusted, self.pods)
        self.registrations = PodRegistrations(self.file, self.agents, self.pods, trust_domain=DOMAIN)
        entitled = EntitledIdentities(DOMAIN, self.registrations, self.joined.evictions, longest_ttl=timedelta(days=90))
        known = self.agents.has_joined
        by_token = ServiceAccountRegistry(DOMAIN, trusted, self.pods, has_joined=known)
        self.registry = KubernetesRegistry(by_token, entitled, has_joined=known)

    def put(self, *pods: PodFact) -> None:
        for pod in pods:
            self.pods.put(pod)

    def join(self, name: str) -> None:
        self.joined.enrol(name, "fingerprint", invited_at=NOW, now=NOW)

    def granted(self, wanted: SpiffeID, *, caller: SpiffeID | None = None, method: str = "certificate") -> Grant:
        return self.registry.grant(Attested(caller or agent(), method), wanted, NOW)

    def told(self, name: str = "node-1", *, epoch: str = "", revision: int = 0) -> RegistrationDelta | None:
        return self.registrations.history_of(name).delta(name, epoch=epoch, revision=revision)


class Stream:
    """An agent that is told of changes."""

    def __init__(self, cluster: Cluster, name: str = "node-1") -> None:
        self._cluster, self._name, self.news = cluster, name, 0
        self.end = cluster.registrations.follow(name, self._changed)
        self.epoch, self.revision = "", 0

    def _changed(self) -> None:
        self.news += 1

    def take(self) -> tuple[set[SpiffeID], int]:
        """Which SPIFFE IDs are put, and how many keys removed."""
        history = self._cluster.registrations.history_of(self._name)
        delta = history.delta(self._name, epoch=self.epoch, revision=self.revision)
        if delta is None:
            return set(), 0
        self.epoch, self.revision = history.epoch, delta.to_revision
        return {each.spiffe_id for each in delta.put.values()}, len(delta.removed)


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    found = Cluster(tmp_path)
    found.put(AGENT_POD, WEB)
    return found


class TestAnAgentIsWelcome:
    def test_as_long_as_a_pod_of_a_node_account_is_on_its_node(self, cluster: Cluster) -> None:
        cluster.agents.check_welcome("node-1")
        assert cluster.agents.unnoted("node-1", [account("web")]) == set()
        with pytest.raises(NotAuthorized, match="no pod of a trusted node account"):
            cluster.agents.check_welcome("node-2")
        cluster.pods.remove("istio-system", "agent-x")
        for asking in (cluster.agents.check_welcome, lambda name: cluster.agents.unnoted(name, [])):
            with pytest.raises(NotAuthorized, match="no pod of a trusted node account"):
                asking("node-1")

    def test_by_no_other_pod_on_its_node(self, tmp_path: Path) -> None:
        other = Cluster(tmp_path, accounts=("istio-system/other",))
        other.put(AGENT_POD, WEB)
        with pytest.raises(NotAuthorized):
            other.agents.check_welcome("node-1")

    def test_and_told_to_come_again_while_nothing_is_known_of_pods(self, cluster: Cluster) -> None:
        cluster.live = False
        with pytest.raises(NotReady):
            cluster.agents.check_welcome("node-1")

    def test_if_it_joined_as_everywhere(self, cluster: Cluster) -> None:
        cluster.join("vm-1")
        cluster.live = False
        cluster.agents.check_welcome("vm-1")
        assert cluster.agents.unnoted("vm-1", [account("web")]) == {account("web")}
        cluster.agents.note_identities("vm-1", [account("web")])
        cluster.agents.note_svid("vm-1", NOW)
        assert cluster.agents.unnoted("vm-1", [account("web")]) == set()
        cluster.joined.evict("vm-1", NOW)
        with pytest.raises(NotAuthorized, match="evicted"):
            cluster.agents.check_welcome("vm-1")

    def test_not_by_a_pod_if_one_of_its_name_was_evicted(self, cluster: Cluster) -> None:
        cluster.join("node-1")
        cluster.joined.evict("node-1", NOW)
        (cluster.path.parent / "agents" / "node-1.json").unlink()
        with pytest.raises(NotAuthorized):
            cluster.agents.check_welcome("node-1")

    def test_whatever_the_length_of_its_nodes_name(self, cluster: Cluster) -> None:
        name = ".".join(["n" * 60] * 4)
        cluster.put(replace(AGENT_POD, uid="2", name="agent-y", node=name))
        cluster.agents.check_welcome(name)


class TestAnAgentMayHave:
    def test_the_identities_of_the_pods_on_its_node_and_no_others(self, cluster: Cluster) -> None:
        assert cluster.granted(account("web")) == Grant(account("web"))
        cluster.put(replace(WEB, uid="db-1", name="db-0", service_account="db", node="node-2"))
        with pytest.raises(NotAuthorized, match="not registered for agent node-1"):
            cluster.granted(account("db"))
        assert cluster.granted(account("db"), caller=agent("node-2")) == Grant(account("db"))

    def test_an_identity_until_its_last_pod_is_gone(self, cluster: Cluster) -> None:
        cluster.put(replace(WEB, uid="web-2", name="web-1"))
        cluster.pods.remove("shop", "web-0")
        assert cluster.granted(account("web"))
        cluster.pods.remove("shop", "web-1")
        with pytest.raises(NotAuthorized, match="not registered"):
            cluster.granted(account("web"))

    def test_nothing_while_nothing_is_known_of_pods(self, cluster: Cluster) -> None:
        cluster.live = False
        with pytest.raises(NotReady):
            cluster.granted(account("web"))

    @pytest.mark.parametrize("path", ["/ca", "/ns/shop/sa/web/x", "/vm/one"])
    def test_no_identity_that_is_no_service_accounts(self, cluster: Cluster, path: str) -> None:
        with pytest.raises(NotAuthorized, match="not registered"):
            cluster.granted(SpiffeID(DOMAIN, path))

    def test_not_the_identity_of_another_agent(self, cluster: Cluster) -> None:
        with pytest.raises(NotAuthorized, match="agent node-1 asks to be agent node-2"):
            cluster.granted(agent("node-2"))

    def test_its_own_by_its_token_alone(self, cluster: Cluster) -> None:
        with pytest.raises(NotAuthorized, match="shows no token"):
            cluster.granted(agent())
        cluster.join("vm-1")
        assert cluster.granted(agent("vm-1"), caller=agent("vm-1")) == Grant(agent("vm-1"))

    def test_what_the_file_says_with_what_comes_with_it(self, tmp_path: Path) -> None:
        cluster = Cluster(tmp_path, file=OF_FILE)
        cluster.put(AGENT_POD)
        assert cluster.granted(account("web")) == Grant(account("web"), HOUR, ("web.example.com",))

    def test_nothing_of_a_node_of_its_name_if_it_joined_by_a_token(self, tmp_path: Path) -> None:
        cluster = Cluster(tmp_path, file=OF_FILE)
        cluster.put(AGENT_POD, replace(WEB, service_account="db"), replace(WEB, uid="w", name="w", node="vm-1"))
        cluster.put(replace(WEB, uid="d", name="d", node="vm-1", service_account="db"))
        cluster.join("vm-1")
        assert cluster.granted(account("web"), caller=agent("vm-1")).ttl == HOUR
        with pytest.raises(NotAuthorized, match="not registered"):
            cluster.granted(account("db"), caller=agent("vm-1"))
        delta = cluster.told("vm-1")
        assert delta is not None
        assert [each.spiffe_id for each in delta.put.values()] == [account("web")]

    def test_and_a_workload_its_own_again(self, cluster: Cluster) -> None:
        assert cluster.granted(account("api"), caller=account("api")) == Grant(account("api"))


class TestAnAgentIsTold:
    def test_the_service_accounts_of_the_pods_on_its_node_with_the_selectors_of_such_a_pod(
        self, cluster: Cluster
    ) -> None:
        delta = cluster.told()
        assert delta is not None
        found = {each.spiffe_id: sorted(map(str, each.selectors)) for each in delta.put.values()}
        assert found == {
            account("web"): ["k8s:ns:shop", "k8s:sa:web"],
            account("node-agent", "istio-system"): ["k8s:ns:istio-system", "k8s:sa:node-agent"],
        }
        assert all(each.ttl is None and not each.dns_names for each in delta.put.values())

    def test_each_change_on_its_node_as_what_came_and_what_went(self, cluster: Cluster) -> None:
        stream = Stream(cluster)
        assert stream.take()[0] == {account("web"), account("node-agent", "istio-system")}
        assert stream.take() == (set(), 0)
        cluster.put(replace(WEB, uid="db-1", name="db-0", service_account="db"))
        assert (stream.news, stream.take()) == (1, ({account("db")}, 0))
        cluster.put(replace(WEB, uid="web-2", name="web-1"))
        assert (stream.news, stream.take()) == (1, (set(), 0))  # one more of the same
        cluster.pods.remove("shop", "db-0")
        assert (stream.news, stream.take()) == (2, (set(), 1))

    def test_several_changes_at_once(self, cluster: Cluster) -> None:
        stream = Stream(cluster)
        stream.take()
        for number in range(20):
            cluster.put(replace(WEB, uid=f"x-{number}", name=f"x-{number}", service_account=f"x-{number}"))
        cluster.pods.remove("shop", "web-0")
        put, removed = stream.take()
        assert (put, removed) == ({account(f"x-{number}") for number in range(20)}, 1)

    def test_nothing_of_other_nodes(self, cluster: Cluster) -> None:
        stream = Stream(cluster)
        stream.take()
        cluster.put(replace(WEB, uid="far", name="far", service_account="far", node="node-2"))
        assert (stream.news, stream.take()) == (0, (set(), 0))

    def test_everything_anew_when_it_comes_back(self, cluster: Cluster) -> None:
        stream = Stream(cluster)
        stream.take()
        epoch, revision = stream.epoch, stream.revision
        stream.end()
        cluster.pods.remove("shop", "web-0")
        again = Stream(cluster)
        again.epoch, again.revision = epoch, revision
        assert again.take() == ({account("node-agent", "istio-system")}, 0)
        assert again.epoch != epoch  # a whole state, not a delta on one that is forgotten

    def test_the_same_on_two_streams_until_both_have_ended(self, cluster: Cluster) -> None:
        one, other = Stream(cluster), Stream(cluster)
        assert one.take() == other.take()
        assert one.epoch == other.epoch
        one.end()
        cluster.pods.remove("shop", "web-0")
        assert other.take() == (set(), 1)
        other.end()
        assert not cluster.registrations._histories
        assert not cluster.registrations._streams
        assert not cluster.pods._followers

    def test_not_that_there_is_nothing_while_nothing_is_known_of_pods(self, cluster: Cluster) -> None:
        cluster.live = False
        with pytest.raises(NotReady):
            cluster.told()
        cluster.live = True
        stream = Stream(cluster)
        stream.take()
        cluster.live = False  # the API server went away
        assert stream.take() == (set(), 0)

    def test_of_what_the_file_says_too_and_that_the_pods_get_the_same(self, tmp_path: Path) -> None:
        cluster = Cluster(tmp_path, file=OF_FILE)
        cluster.put(AGENT_POD, WEB)
        delta = cluster.told()
        assert delta is not None
        web = [each for each in delta.put.values() if each.spiffe_id == account("web")]
        assert {frozenset(map(str, each.selectors)) for each in web} == {
            frozenset({"unix:uid:1000"}),
            frozenset({"k8s:ns:shop", "k8s:sa:web"}),
        }
        assert {(each.ttl, each.dns_names) for each in web} == {(HOUR, ("web.example.com",))}

    def test_once_of_what_the_file_says_as_well(self, tmp_path: Path) -> None:
        text = OF_FILE.replace('["unix:uid:1000"]', '["k8s:ns:shop", "k8s:sa:web"]')
        cluster = Cluster(tmp_path, file=text)
        cluster.put(WEB)
        delta = cluster.told()
        assert delta is not None
        (only,) = delta.put.values()
        assert only.ttl == HOUR

    async def test_that_the_file_has_changed(self, tmp_path: Path) -> None:
        cluster = Cluster(tmp_path)
        cluster.put(AGENT_POD)
        stream = Stream(cluster)
        stream.take()
        cluster.path.write_text(OF_FILE)
        await cluster.file.reload_if_changed()
        assert (stream.news, stream.take()[0]) == (1, {account("web")})

    def test_nothing_of_a_pod_whose_account_can_have_no_identity(self, cluster: Cluster) -> None:
        cluster.put(replace(WEB, uid="mirror", name="mirror", service_account=""))
        delta = cluster.told()
        assert delta is not None
        assert len(delta.put) == 2


def test_ten_thousand_pods_on_five_hundred_nodes_tell_only_whom_it_concerns(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    streams = [Stream(cluster, f"node-{number}") for number in range(500)]
    for number in range(10_000):
        cluster.put(
            PodFact(f"uid-{number}", "shop", f"pod-{number}", f"sa-{number}", f"node-{number % 500}", "Running")
        )
    assert {stream.news for stream in streams} == {20}  # and not 10,000
    assert {len(stream.take()[0]) for stream in streams} == {20}
    cluster.pods.remove("shop", "pod-0")
    assert [stream.news - 20 for stream in streams] == [1] + [0] * 499
    assert streams[0].take() == (set(), 1)
