"""ServiceAccountRegistry: its own identity for everybody, those of the pods on their node for trusted node accounts."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from ca.attest import Attested, agreed
from ca.platform.kubernetes.callers.impersonation import NodeAccounts, ServiceAccountRegistry
from ca.platform.kubernetes.callers.pods import PodIndex
from ca.platform.kubernetes.callers.service_account import ServiceAccountCaller
from ca.platform.kubernetes.facts import PodFact
from ca.registry import Grant
from istio_auth.errors import ConfigurationError, NotAuthorized, NotReady
from istio_auth.spiffe_id import SpiffeID, TrustDomain

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)
DOMAIN = TrustDomain("cluster.local")
ZTUNNEL = ServiceAccountCaller(
    "istio-system",
    "ztunnel",
    "sa-1",
    pod_name="ztunnel-a",
    pod_uid="ztunnel-1",
    node_name="node-1",
    node_uid="node-uid-1",
    credential_id="JTI=1",
)
ITS_POD = PodFact("ztunnel-1", "istio-system", "ztunnel-a", "ztunnel", "node-1", "Running")
WEB_POD = PodFact("web-1", "default", "web-0", "web", "node-1", "Running")
WEB = SpiffeID.for_service_account(DOMAIN, "default", "web")
TRUSTED = NodeAccounts.parse(["istio-system/ztunnel"])


THE_AGENT = SpiffeID.for_agent(DOMAIN, "node-1")


def granted(
    caller: ServiceAccountCaller | Attested = ZTUNNEL,
    wanted: SpiffeID = WEB,
    *,
    pods: tuple[PodFact, ...] = (ITS_POD, WEB_POD),
    accounts: NodeAccounts = TRUSTED,
    live: bool = True,
    joined: frozenset[str] = frozenset(),
) -> Grant:
    index = PodIndex(lambda: live)
    for pod in pods:
        index.put(pod)
    attested = caller if isinstance(caller, Attested) else caller.attested(DOMAIN)
    registry = ServiceAccountRegistry(DOMAIN, accounts, index, has_joined=joined.__contains__)
    return registry.grant(attested, wanted, NOW)


class TestTheOwnIdentity:
    def test_is_granted_whatever_is_known_of_pods(self) -> None:
        own = ZTUNNEL.spiffe_id(DOMAIN)
        assert granted(wanted=own, pods=(), accounts=NodeAccounts(), live=False) == Grant(own)
        assert granted(ServiceAccountCaller("default", "web")) == Grant(WEB)

    def test_is_granted_by_certificate(self) -> None:
        assert granted(Attested(WEB, "certificate"), pods=(), live=False) == Grant(WEB)

    def test_is_granted_in_our_trust_domain_only(self) -> None:
        foreign = SpiffeID.for_service_account(TrustDomain("foreign.test"), "default", "web")
        with pytest.raises(NotAuthorized, match="not in the trust domain"):
            granted(Attested(foreign, "certificate"), foreign)

    @pytest.mark.parametrize("path", ["", "/ca", "/agent", "/ns/default/sa", "/ns/default/sa/web/x"])
    def test_is_that_of_a_service_account(self, path: str) -> None:
        other = SpiffeID(DOMAIN, path)
        with pytest.raises(NotAuthorized, match="not the identity of a service account"):
            granted(Attested(other, "certificate"), other)


class TestAnotherIdentity:
    @pytest.mark.parametrize("phase", ["Pending", "Running", "Succeeded"])
    def test_is_granted_to_a_node_account_for_a_pod_on_its_node(self, phase: str) -> None:
        assert granted(pods=(ITS_POD, replace(WEB_POD, phase=phase))) == Grant(WEB)

    def test_is_granted_for_a_pod_that_is_being_deleted_and_may_still_run(self) -> None:
        assert granted(pods=(ITS_POD, replace(WEB_POD, deleted=True))) == Grant(WEB)

    def test_is_granted_to_a_token_that_names_no_node(self) -> None:
        assert granted(replace(ZTUNNEL, node_name="", node_uid="")) == Grant(WEB)

    def test_is_granted_to_who_shows_its_certificate_too(self) -> None:
        certificate = Attested(ZTUNNEL.spiffe_id(DOMAIN), "certificate")
        assert granted(agreed(certificate, ZTUNNEL.attested(DOMAIN))) == Grant(WEB)

    def test_is_not_granted_to_a_certificate_alone(self) -> None:
        with pytest.raises(NotAuthorized, match="shows no token"):
            granted(Attested(ZTUNNEL.spiffe_id(DOMAIN), "certificate"))

    def test_is_not_granted_by_the_token_of_somebody_else(self) -> None:
        with pytest.raises(NotAuthorized, match="shows no token"):
            granted(Attested(SpiffeID.for_service_account(DOMAIN, "a", "b"), "certificate", caller=ZTUNNEL))

    @pytest.mark.parametrize("account", ["istio-system/other", "default/ztunnel"])
    def test_is_not_granted_to_accounts_that_are_not_trusted(self, account: str) -> None:
        with pytest.raises(NotAuthorized, match="no trusted node account"):
            granted(accounts=NodeAccounts.parse([account]))
        granted(accounts=NodeAccounts.parse([account, "istio-system/ztunnel"]))

    def test_is_not_granted_to_anybody_if_nobody_is_trusted(self) -> None:
        with pytest.raises(NotAuthorized, match="no trusted node account"):
            granted(accounts=NodeAccounts())

    @pytest.mark.parametrize("name", ["foreign.test", "cluster.local.", "cluster.loca"])
    def test_is_not_granted_in_another_trust_domain(self, name: str) -> None:
        with pytest.raises(NotAuthorized, match="not in the trust domain"):
            granted(wanted=SpiffeID(TrustDomain(name), WEB.path))

    @pytest.mark.parametrize(
        "path", ["", "/ca", "/ns/default", "/ns/default/sa/web/x", "/NS/default/sa/web", "/sa/web/ns/default"]
    )
    def test_is_one_of_a_service_account(self, path: str) -> None:
        with pytest.raises(NotAuthorized, match="not the identity of a service account"):
            granted(wanted=SpiffeID(DOMAIN, path))

    @pytest.mark.parametrize(
        ("pod", "reason"),
        [
            (None, "is not there"),
            (replace(ITS_POD, uid="ztunnel-2"), "is not there"),
            (replace(ITS_POD, namespace="default"), "is not there"),
            (replace(ITS_POD, name="ztunnel-b"), "is not there"),
            (replace(ITS_POD, service_account="default"), "runs as default"),
            (replace(ITS_POD, phase="Failed"), "has failed"),
            (replace(ITS_POD, node=""), "is on no node"),
            (replace(ITS_POD, node="node-2"), "is on node-2, and its token is of node-1"),
        ],
    )
    def test_is_not_granted_to_a_token_whose_pod_is_not_there_as_it_says(
        self, pod: PodFact | None, reason: str
    ) -> None:
        with pytest.raises(NotAuthorized, match=reason):
            granted(pods=(pod, WEB_POD) if pod else (WEB_POD,))
        granted()

    def test_is_not_granted_to_a_token_without_a_pod(self) -> None:
        with pytest.raises(NotAuthorized, match="bound to no pod"):
            granted(ServiceAccountCaller("istio-system", "ztunnel"))

    @pytest.mark.parametrize(
        "pod",
        [
            replace(WEB_POD, node="node-2"),
            replace(WEB_POD, node=""),
            replace(WEB_POD, phase="Failed"),
            replace(WEB_POD, namespace="other"),
            replace(WEB_POD, service_account="other"),
        ],
    )
    def test_is_not_granted_without_a_pod_of_it_on_the_same_node(self, pod: PodFact) -> None:
        with pytest.raises(NotAuthorized, match="no pod of default/web is on node-1"):
            granted(pods=(ITS_POD, pod))
        granted(pods=(ITS_POD, pod, replace(WEB_POD, uid="web-2", name="web-1")))

    def test_is_not_granted_on_the_node_that_the_token_names_but_on_that_of_its_pod(self) -> None:
        elsewhere = replace(ZTUNNEL, node_name="node-2", node_uid="")
        with pytest.raises(NotAuthorized, match="is on node-1"):
            granted(elsewhere, pods=(ITS_POD, replace(WEB_POD, node="node-2")))

    def test_is_neither_granted_nor_refused_while_the_pods_of_now_are_not_known(self) -> None:
        for pods in ((), (ITS_POD, WEB_POD)):
            with pytest.raises(NotReady):
                granted(pods=pods, live=False)

    def test_tells_strangers_no_reason(self) -> None:
        with pytest.raises(NotAuthorized) as caught:
            granted(pods=())
        assert caught.value.public == "not authorized"


class TestNodeAccounts:
    def test_are_told_by_namespace_and_name(self) -> None:
        parsed = NodeAccounts.parse(["istio-system/ztunnel", " kube-system/agent.v2 ", "istio-system/ztunnel"])
        assert parsed.accounts == {("istio-system", "ztunnel"), ("kube-system", "agent.v2")}
        assert parsed.trust(ZTUNNEL)
        assert NodeAccounts.parse([]).accounts == frozenset()

    @pytest.mark.parametrize(
        "entry", ["", "/", "ztunnel", "istio-system/", "/ztunnel", "a/b/c", "A/b", "a/B", "a b/c", "*/ztunnel", "a/*"]
    )
    def test_that_are_none_are_told(self, entry: str) -> None:
        with pytest.raises(ConfigurationError, match="namespace/serviceaccount"):
            NodeAccounts.parse(["istio-system/ztunnel", entry])


class TestTheAgentOfTheNode:
    def test_is_granted_to_a_node_account_on_that_node(self) -> None:
        assert granted(wanted=THE_AGENT) == Grant(THE_AGENT)

    def test_is_not_granted_to_one_on_another_node(self) -> None:
        elsewhere = SpiffeID.for_agent(DOMAIN, "node-2")
        with pytest.raises(NotAuthorized, match="is on node-1, and asks to be the agent of 'node-2'"):
            granted(wanted=elsewhere)
        on_node_2 = replace(ZTUNNEL, node_name="node-2")
        assert granted(on_node_2, elsewhere, pods=(replace(ITS_POD, node="node-2"),)) == Grant(elsewhere)

    def test_is_not_granted_to_an_account_that_is_not_trusted(self) -> None:
        with pytest.raises(NotAuthorized, match="no trusted node account"):
            granted(wanted=THE_AGENT, accounts=NodeAccounts.parse(["istio-system/other"]))

    def test_is_not_granted_to_a_certificate_alone(self) -> None:
        with pytest.raises(NotAuthorized, match="shows no token"):
            granted(Attested(ZTUNNEL.spiffe_id(DOMAIN), "certificate"), THE_AGENT)

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"node_name": "", "node_uid": ""}, "names no node"),
            ({"pod_name": "", "pod_uid": ""}, "bound to no pod"),
            ({"node_name": "node-2"}, "its token is of node-2"),
            ({"pod_uid": "another"}, "is not there"),
        ],
    )
    def test_is_not_granted_to_a_token_that_does_not_say_where(self, changes: dict[str, str], reason: str) -> None:
        with pytest.raises(NotAuthorized, match=reason):
            granted(replace(ZTUNNEL, **changes), THE_AGENT)

    def test_is_not_granted_while_nothing_is_known_of_pods(self) -> None:
        with pytest.raises(NotReady):
            granted(wanted=THE_AGENT, live=False)

    def test_is_not_granted_where_an_agent_of_that_name_joined_by_a_join_token(self) -> None:
        with pytest.raises(NotAuthorized, match="joined by a join token"):
            granted(wanted=THE_AGENT, joined=frozenset({"node-1"}))
        assert granted(wanted=THE_AGENT, joined=frozenset({"node-2"})) == Grant(THE_AGENT)

    def test_is_not_granted_in_another_trust_domain(self) -> None:
        with pytest.raises(NotAuthorized, match="not in the trust domain"):
            granted(wanted=SpiffeID.for_agent(TrustDomain("foreign.test"), "node-1"))
