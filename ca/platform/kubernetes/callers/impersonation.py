"""Decides who may have which identity by a token on Kubernetes: three rules, and no others.

1. Every service account may have its own identity.
2. A trusted node account may have the identities of the pods on its node.
3. A trusted node account may have the identity of the agent of its node, with which it can then call without a token.

The second rule is istiod's for ztunnel, with the trust domain checked too. What counts is the caller's *token*: its
service account is a trusted one; its pod exists, by UID, under that account and on the node that the token names, if it
names one; and at least one pod of the wanted service account is on the same node. The third rule asks the same of the
caller, and that its token names a node. All of it is answered from the watched pods. While the watch is not live the
answer is "not ready", which is no refusal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Self

from ca.agents.agent import agent_name
from ca.attest import Attested
from ca.platform.kubernetes.callers.pods import PodView
from ca.platform.kubernetes.callers.service_account import ServiceAccountCaller, valid_account
from ca.registry import Grant
from istio_auth.errors import ConfigurationError, NotAuthorized, NotReady
from istio_auth.spiffe_id import SpiffeID, TrustDomain


@dataclass(frozen=True, slots=True)
class NodeAccounts:
    """The service accounts that may ask for the identities of the pods on their node.

    Args:
        accounts: namespace and name of each; none means that nobody may.
    """

    accounts: frozenset[tuple[str, str]] = frozenset()

    @classmethod
    def parse(cls, entries: Iterable[str]) -> Self:
        """The accounts that settings of the form `namespace/serviceaccount` name.

        Raises:
            ConfigurationError: an entry is of another form.
        """
        return cls(frozenset(map(_account, entries)))

    def trust(self, caller: ServiceAccountCaller) -> bool:
        """Whether this caller is one of them."""
        return (caller.namespace, caller.service_account) in self.accounts


class ServiceAccountRegistry:
    """The `Registry` for callers with a service-account token.

    Args:
        trust_domain: the only trust domain whose identities are granted.
        node_accounts: who may ask for more than its own identity.
        pods: the present pods, as watched.
        has_joined: whether an agent of this name joined by a join token: then the agent of a node can not have it.
    """

    def __init__(
        self,
        trust_domain: TrustDomain,
        node_accounts: NodeAccounts,
        pods: PodView,
        *,
        has_joined: Callable[[str], bool] = lambda _: False,
    ) -> None:
        self._trust_domain = trust_domain
        self._node_accounts = node_accounts
        self._pods = pods
        self._has_joined = has_joined

    def grant(self, attested: Attested, wanted: SpiffeID, now: datetime) -> Grant:  # noqa: ARG002  # pods have no times here
        """What this caller may have of the identity it asks for (see `Registry`).

        Raises:
            NotAuthorized: it may not have it.
            NotReady: nobody can tell now.
        """
        if wanted.trust_domain != self._trust_domain:
            raise NotAuthorized(f"{wanted} is not in the trust domain {self._trust_domain}")
        if (agent := agent_name(wanted)) is not None:
            self._check_agent(attested, agent)
            return Grant(wanted)
        if wanted.namespace is None or wanted.service_account is None:
            raise NotAuthorized(f"{wanted} is not the identity of a service account")
        if wanted != attested.spiffe_id:
            self._check_impersonation(attested, wanted.namespace, wanted.service_account)
        return Grant(wanted)

    def _check_agent(self, attested: Attested, name: str) -> None:
        caller = self._node_account(attested)
        if not caller.node_name:
            raise NotAuthorized(f"the token of {caller} names no node")
        if (node := self._node_of(caller)) != name:
            raise NotAuthorized(f"{caller} is on {node}, and asks to be the agent of {name[:253]!a}")
        if self._has_joined(name):
            raise NotAuthorized(f"an agent {name} joined by a join token, or was evicted: {caller} can not be it")

    def _check_impersonation(self, attested: Attested, namespace: str, service_account: str) -> None:
        caller = self._node_account(attested)
        node = self._node_of(caller)
        if not self._pods.on_node(node, namespace, service_account):
            raise NotAuthorized(f"no pod of {namespace}/{service_account} is on {node}, the node of {caller}")

    def _node_account(self, attested: Attested) -> ServiceAccountCaller:
        """The trusted node account that calls.

        Raises:
            NotAuthorized: the caller is none, or shows no token.
        """
        caller = attested.caller
        if not isinstance(caller, ServiceAccountCaller) or caller.spiffe_id(self._trust_domain) != attested.spiffe_id:
            raise NotAuthorized(f"{attested.spiffe_id} shows no token, and asks for an identity that is not its own")
        if not self._node_accounts.trust(caller):
            raise NotAuthorized(f"{caller} is no trusted node account, and asks for an identity that is not its own")
        return caller

    def _node_of(self, caller: ServiceAccountCaller) -> str:
        """Where the pod of the caller runs.

        Raises:
            NotAuthorized: the token is bound to no pod, or to one that is not as the token says.
            NotReady: the present pods are not known.
        """
        if not caller.pod_uid:
            raise NotAuthorized(f"the token of {caller} is bound to no pod")
        if not self._pods.live:
            raise NotReady("the API server is not heard at present: it is not known which pods run where")
        shown = f"the pod {caller.pod_name} of {caller}, UID {caller.pod_uid},"
        pod = self._pods.pod(caller.pod_uid)
        if pod is None or (pod.namespace, pod.name) != (caller.namespace, caller.pod_name):
            raise NotAuthorized(f"{shown} is not there")
        if pod.service_account != caller.service_account:
            raise NotAuthorized(f"{shown} runs as {pod.service_account}")
        if pod.phase == "Failed":
            raise NotAuthorized(f"{shown} has failed")
        if not pod.node:
            raise NotAuthorized(f"{shown} is on no node")
        if caller.node_name and caller.node_name != pod.node:
            raise NotAuthorized(f"{shown} is on {pod.node}, and its token is of {caller.node_name}")
        return pod.node


def _account(entry: str) -> tuple[str, str]:
    namespace, _, name = entry.strip().partition("/")
    if not valid_account(namespace, name):
        raise ConfigurationError(f"{entry[:100]!a} names no service account: write namespace/serviceaccount")
    return namespace, name
